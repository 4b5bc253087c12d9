"""A plain checkpoint with its weights rounded as in 4-bit training with bitsandbytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from packager.errors import UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from packager.model.dequantize.packed import QuantizedModel, require_library
from packager.model.derived import Derived

if TYPE_CHECKING:
    import torch


class RoundedByBitsandbytes(Derived):
    """A plain checkpoint; each linear layer's weight is quantized and dequantized when loaded.

    This happens on the CPU. Weights that were quantized elsewhere can differ in a few values, since
    kernels differ, and since a quantized model may come from other weights.

    Args:
        checkpoint: the 16-bit model.
        settings: the `quantization_config` of the quantized model.

    Raises:
        UnsupportedError: if the settings are not for 4 bits, or bitsandbytes is not installed.
    """

    def __init__(self, checkpoint: FolderCheckpoint, settings: Mapping[str, object]) -> None:
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        if not settings.get("load_in_4bit") or kind not in ("nf4", "fp4"):
            raise UnsupportedError("The quantized base does not have 4 bits (nf4, fp4).")
        require_library("bitsandbytes", "bitsandbytes", str(kind))
        super().__init__(checkpoint)
        self._kind = kind
        self._is_double = bool(settings.get("bnb_4bit_use_double_quant"))
        skipped = settings.get("llm_int8_skip_modules")
        self._skipped = [str(name) for name in skipped] if isinstance(skipped, list) else []
        self._model = QuantizedModel(checkpoint, settings, "BF16")

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is rounded: the matrix of a layer that the settings do not exclude.

        Unsloth's dynamic quantization excludes the layers that it keeps in 16 bits. Follows
        `should_convert_module` of transformers.
        """
        module = name.removesuffix(".weight")
        return (
            module != name
            and len(self.tensors[name].shape) == 2
            and not any(
                re.match(rf"{re.escape(skipped)}(\.|$)", module) or module.endswith(skipped)
                for skipped in self._skipped
            )
        )

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU; the caller owns its memory."""
        weight = self.base.load(name)
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
