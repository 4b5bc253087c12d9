"""FP8 with scales per tensor, channel or block, as transformers, DeepSeek and fbgemm write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from packager.model.dequantize.packed import PackedWeight, Quantization, QuantizedModel

if TYPE_CHECKING:
    import torch

_FLOATS = ("F8_E4M3", "F8_E5M2")
# The names that checkpoints give to the scales beside `weight`.
_SUFFIXES = ("_scale_inv", "_scale")
_SIBLINGS = ("scale", "qscale_weight")


def find_fp8(model: QuantizedModel) -> Quantization:
    """The FP8 weights: `quant_method` `fp8` and `fbgemm_fp8`.

    A weight is the product of its FP8 values and their scales in fp32, rounded once.

    Raises:
        UnsupportedError: for a block size that is not a pair.
        CorruptFileError: with the name of a weight whose scales are missing or do not fit.
    """
    block = model.settings.get("weight_block_size")
    if block is not None and not _is_block(block):
        raise model.refuse(f"`weight_block_size` {block!r}")
    names = [name for name, info in model.tensors.items() if info.dtype in _FLOATS]
    weights = tuple(_scaled(model, name, block) for name in names)
    label = f"fp8 in blocks of {block[0]} x {block[1]}" if isinstance(block, list) else "fp8"
    return Quantization(label, weights)


def _is_block(block: object) -> bool:
    return (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(size, int) and size > 0 for size in block)
    )


def _scaled(model: QuantizedModel, name: str, block: object) -> PackedWeight:
    module = name.rpartition(".")[0]
    candidates = [name + suffix for suffix in _SUFFIXES]
    if name.endswith(".weight"):
        candidates += [f"{module}.{sibling}" for sibling in _SIBLINGS]
    scale = next((other for other in candidates if other in model.tensors), None)
    if scale is None:
        raise model.damaged(name, f"is FP8 without its scales {candidates[0]!r}")
    info = model.tensors[name]
    spans = _spans(info.shape, model.tensors[scale].shape, block)
    if spans is None:
        raise model.damaged(
            name, f"has the shape {info.shape}, and its scales {model.tensors[scale].shape}"
        )
    parts = {"weight": name, "scale": scale}
    return PackedWeight(model.plain(name, info.shape), parts, _dequantizer(spans))


def _spans(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], block: object
) -> tuple[int, int] | None:
    """The rows and columns that each scale covers; None if weight and scales do not fit.

    The configuration's block comes first: if it does not divide a weight (the last block is
    shorter), the number of scales alone would give other blocks.
    """
    if len(shape) < 2:
        return None
    rows, columns = shape[-2:]
    if math.prod(scale_shape) == 1:
        return rows, columns
    if scale_shape == (rows,):
        return 1, columns
    if len(scale_shape) != len(shape) or scale_shape[:-2] != shape[:-2]:
        return None
    scale_rows, scale_columns = scale_shape[-2:]
    if isinstance(block, list):
        height, width = block
        if (math.ceil(rows / height), math.ceil(columns / width)) == (scale_rows, scale_columns):
            return height, width
    if not scale_rows or not scale_columns or rows % scale_rows or columns % scale_columns:
        return None
    return rows // scale_rows, columns // scale_columns


def _dequantizer(spans: tuple[int, int]) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        weight, scale = parts["weight"].to(torch.float32), parts["scale"]
        if scale.dtype == torch.uint8:  # the exponents of powers of two (E8M0), stored as bytes
            scale = (scale.to(torch.float32) - 127).exp2()
        scale = scale.to(torch.float32)
        if scale.numel() == 1:
            return weight.mul_(scale.reshape(()))
        if scale.ndim == 1:
            scale = scale[:, None]
        rows, columns = weight.shape[-2:]
        scale = scale.repeat_interleave(spans[0], dim=-2)[..., :rows, :]
        # One column of blocks at a time: scales as large as the weight would double the memory.
        for index in range(scale.shape[-1]):
            start = index * spans[1]
            weight[..., start : min(start + spans[1], columns)].mul_(scale[..., index : index + 1])
        return weight

    return dequantize
