"""MXFP4, the format of gpt-oss's experts: blocks of 32 4-bit floats with one power of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.model.dequantize.packed import PackedWeight, Quantization, QuantizedModel

if TYPE_CHECKING:
    import torch

# The values of E2M1 (OCP Microscaling Formats 1.0, 5.3.3), the sign in the highest bit.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCKS, _SCALES = "_blocks", "_scales"
_BIAS = 127


def find_mxfp4(model: QuantizedModel) -> Quantization:
    """The experts that are stored as `*_blocks` and `*_scales`.

    Raises:
        CorruptFileError: with the name of blocks without matching scales.
    """
    names = [name for name in model.tensors if name.endswith(_BLOCKS)]
    return Quantization("mxfp4", tuple(_experts(model, name) for name in names))


def _experts(model: QuantizedModel, blocks: str) -> PackedWeight:
    name = blocks.removesuffix(_BLOCKS)
    scales = name + _SCALES
    shape = model.tensors[blocks].shape
    if len(shape) != 4 or scales not in model.tensors or model.tensors[scales].shape != shape[:-1]:
        raise model.damaged(name, f"has blocks {shape} without matching scales")
    experts, out_features, groups, block_bytes = shape
    # The plain model stores experts as `[experts, in_features, out_features]`.
    info = model.plain(name, (experts, groups * block_bytes * 2, out_features))
    return PackedWeight(info, {"blocks": blocks, "scales": scales}, _dequantize, is_by_slice=True)


def _dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    blocks, exponents = parts["blocks"], parts["scales"].to(torch.int32) - _BIAS
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)], dtype=torch.float32)
    weights = torch.empty((*blocks.shape[:-1], 2 * blocks.shape[-1]), dtype=torch.float32)
    # The lower half of a byte comes first.
    for expert, packed in enumerate(blocks):
        weights[expert, ..., 0::2] = values[(packed & 0xF).long()]
        weights[expert, ..., 1::2] = values[(packed >> 4).long()]
    weights.ldexp_(exponents[..., None])
    return weights.flatten(-2).transpose(-1, -2).contiguous()
