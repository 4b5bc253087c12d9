"""A plain checkpoint with its weights as training on it in 4 bits of bitsandbytes saw them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from packager.model.dequantize.packed import QuantizedModel, require_library
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch


class RoundedByBitsandbytes:
    """The tensors of a plain checkpoint, each linear layer's weight quantized and back again.

    That is done when a weight is loaded, on the CPU. Weights quantized elsewhere can differ in a
    few values: kernels differ, and a quantized model may have been made of other weights.

    Args:
        checkpoint: the 16-bit model.
        settings: the `quantization_config` of the quantized one.

    Raises:
        UnsupportedError: if the settings are not of 4 bits, or bitsandbytes is not installed.
    """

    def __init__(self, checkpoint: FolderCheckpoint, settings: Mapping[str, object]) -> None:
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        if not settings.get("load_in_4bit") or kind not in ("nf4", "fp4"):
            raise UnsupportedError("The quantized base is not one of 4 bits (nf4, fp4).")
        require_library("bitsandbytes", "bitsandbytes", str(kind))
        self._base = checkpoint
        self._kind = kind
        self._is_double = bool(settings.get("bnb_4bit_use_double_quant"))
        skipped = settings.get("llm_int8_skip_modules")
        self._skipped = [str(name) for name in skipped] if isinstance(skipped, list) else []
        self._model = QuantizedModel(checkpoint, settings, "BF16")

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The checkpoint's own."""
        return self._base.tensors

    @property
    def files(self) -> Mapping[str, Path]:
        """The checkpoint's own."""
        return self._base.files

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is rounded: a matrix of a layer that the settings do not leave out.

        Unsloth's dynamic quantization leaves out the layers that it keeps in 16 bits
        (`should_convert_module` of transformers is followed).
        """
        module = name.removesuffix(".weight")
        return (
            module != name
            and len(self._base.tensors[name].shape) == 2
            and not any(
                re.match(rf"{re.escape(skipped)}(\.|$)", module) or module.endswith(skipped)
                for skipped in self._skipped
            )
        )

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU, in memory of its own."""
        weight = self._base.load(name)
        if not self.is_packed(name):
            return weight
        if self._model.is_conv1d(name.removesuffix(".weight")):
            return self._rounded(weight.T).T.contiguous()
        return self._rounded(weight)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension."""
        whole = self.load(name)
        for start in range(0, whole.shape[0], rows):
            yield whole[start : start + rows].clone()

    def _rounded(self, weight: torch.Tensor) -> torch.Tensor:
        import bitsandbytes.functional as bnb

        packed, state = bnb.quantize_4bit(
            weight.contiguous(), compress_statistics=self._is_double, quant_type=self._kind
        )
        rounded: torch.Tensor = bnb.dequantize_4bit(packed, state)
        return rounded.to(weight.dtype)
