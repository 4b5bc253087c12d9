"""A quantized checkpoint as a plain one: each weight is dequantized when it is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from packager.errors import SAVE_MODEL_AGAIN, CorruptFileError
from packager.model.checkpoint import FolderCheckpoint
from packager.model.dequantize.formats import (
    FORMATS,
    plain_config,
    quant_method,
    quantization_settings,
    require_known,
)
from packager.model.dequantize.packed import (
    SAVE_AGAIN_OR_USE_16_BIT,
    PackedWeight,
    QuantizedModel,
    is_of_activations,
)
from packager.model.derived import Derived
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_PLAIN = ("BF16", "F16", "F32", "F64", "BOOL", "I64")


class Dequantized(Derived):
    """A quantized checkpoint with plain weights, the same as its library computes.

    The list of weights needs only headers (in some formats also small tensors that hold shapes);
    one weight at a time is in memory. Everything is computed on the CPU, and each weight is rounded
    to `dtype`; tensors that are not quantized stay as they are.

    Args:
        checkpoint: a model whose `config.json` has a `quantization_config`.

    Raises:
        UnsupportedError: with the name of an unsupported format or a missing library.
        CorruptFileError: with the name of a weight whose parts do not fit, or of an unknown tensor.
    """

    def __init__(self, checkpoint: FolderCheckpoint) -> None:
        require_known(checkpoint.config)
        settings = quantization_settings(checkpoint.config)
        if settings is None:
            raise ValueError(f"{checkpoint.config.path} has no quantization_config")
        super().__init__(checkpoint, plain_config(checkpoint.config))
        self._folder = checkpoint.folder
        self.dtype = _plain_dtype(checkpoint)
        model = QuantizedModel(checkpoint, settings, self.dtype)
        quantization = FORMATS[quant_method(settings)](model)
        self.label = quantization.label
        self._packed = {weight.info.name: weight for weight in quantization.weights}
        self._tensors = _plain_tensors(checkpoint, self._packed)

    @property
    def description(self) -> str:
        """How the weights are converted, for people."""
        return f"quantized ({self.label}): dequantized to {_NAMES[self.dtype]} tensor by tensor"

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every plain tensor, by name, in the order of the files."""
        return self._tensors

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is dequantized; the others are read as they are."""
        return name in self._packed

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU; the caller owns its memory."""
        weight = self._packed.get(name)
        if weight is None:
            return self.base.load(name)
        if weight.is_by_slice:
            return self._load_by_slice(name, weight.info)
        parts = {role: self.base.load(part) for role, part in weight.parts.items()}
        return self._dequantize(weight, parts)

    def _load_by_slice(self, name: str, info: TensorInfo) -> torch.Tensor:
        """A stack of experts, loaded without any memory beside its own."""
        import torch

        whole = torch.empty(info.shape, dtype=info.torch_dtype)
        for index, piece in enumerate(self.blocks(name, 1)):
            whole[index] = piece[0]
        return whole

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension."""
        weight = self._packed.get(name)
        if weight is None:
            yield from self.base.blocks(name, rows)
        elif weight.is_by_slice:
            readers = [self.base.blocks(part, rows) for part in weight.parts.values()]
            for pieces in zip(*readers, strict=True):
                yield self._dequantize(weight, dict(zip(weight.parts, pieces, strict=True)))
        else:
            whole = self.load(name)
            for start in range(0, whole.shape[0], rows):
                yield whole[start : start + rows].clone()

    def _dequantize(self, weight: PackedWeight, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        with torch.no_grad():
            plain = weight.dequantize(parts).to(weight.info.torch_dtype)
        if tuple(plain.shape)[1:] != weight.info.shape[1:]:
            raise CorruptFileError(
                f"The quantized weight {weight.info.name!r} in {self._folder} has the "
                f"shape {list(plain.shape)}, not {list(weight.info.shape)}.",
                next_step=SAVE_MODEL_AGAIN,
            )
        return plain


def _plain_dtype(checkpoint: FolderCheckpoint) -> str:
    """The element type to dequantize to: the configuration's, else the first plain tensor's."""
    for part in checkpoint.config.parts:
        for key in ("dtype", "torch_dtype"):
            if str(part.get(key)) in _DTYPES:
                return _DTYPES[str(part[key])]
    kept = (info.dtype for info in checkpoint.tensors.values() if math.prod(info.shape) > 1)
    return next((dtype for dtype in kept if dtype in ("BF16", "F16")), "BF16")


def _plain_tensors(
    checkpoint: FolderCheckpoint, packed: Mapping[str, PackedWeight]
) -> dict[str, TensorInfo]:
    """The plain tensors in the order of the files; each takes the place of its first part."""
    owner = {part: weight for weight in packed.values() for part in weight.parts.values()}
    tensors: dict[str, TensorInfo] = {}
    for name, info in checkpoint.tensors.items():
        if name in owner:
            plain = owner[name].info
            tensors.setdefault(plain.name, plain)
        elif is_of_activations(name) and _is_beside_weight(info, packed):
            continue
        elif info.dtype not in _PLAIN:
            raise CorruptFileError(
                f"{checkpoint.folder} holds the tensor {name!r} ({info.dtype}), which is neither "
                "a plain weight nor part of a quantized weight in config.json's format.",
                next_step=SAVE_AGAIN_OR_USE_16_BIT,
            )
        else:
            tensors[name] = info
    return tensors


def _is_beside_weight(info: TensorInfo, packed: Mapping[str, PackedWeight]) -> bool:
    """Whether a tensor is a single number or beside a packed weight, which no plain model has."""
    module = info.name.rpartition(".")[0]
    return math.prod(info.shape) == 1 or f"{module}.weight" in packed
