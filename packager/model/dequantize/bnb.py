"""bitsandbytes: nf4 and fp4 in blocks, LLM.int8() by rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from packager.model.dequantize.packed import (
    PackedWeight,
    Quantization,
    QuantizedModel,
    require_library,
)

if TYPE_CHECKING:
    import torch

_STATE = ".quant_state.bitsandbytes__"
_TORCH_TYPES = ("bfloat16", "float16", "float32")


def find_bitsandbytes(model: QuantizedModel) -> Quantization:
    """The weights that bitsandbytes has packed.

    The shape of a 4-bit weight is in a small JSON text beside it, which is read here.

    Raises:
        UnsupportedError: if bitsandbytes is not installed.
        CorruptFileError: with the name of a weight without its scales.
    """
    states = [name for name in model.tensors if _STATE in name]
    kinds = sorted({name.rpartition("__")[2] for name in states})
    weights = [_four_bits(model, name) for name in states]
    rows = [name for name, info in model.tensors.items() if info.dtype == "I8"]
    weights += [_int8(model, name) for name in rows]
    label = " and ".join(kinds + (["int8"] if rows else [])) or "bitsandbytes"
    require_library("bitsandbytes", "bitsandbytes", label)
    return Quantization(label, tuple(weights))


def _four_bits(model: QuantizedModel, state: str) -> PackedWeight:
    name = state.partition(_STATE)[0]
    settings = _read_state(model, state)
    shape, kept_as = settings.get("shape"), settings.get("dtype")
    if name not in model.tensors or not isinstance(shape, list) or kept_as not in _TORCH_TYPES:
        raise model.damaged(name, f"has no usable {state!r}: {settings}")
    parts = {
        other[len(name) + 1 :]: other for other in model.tensors if other.startswith(name + ".")
    }
    is_transposed = len(shape) == 2 and model.is_conv1d(name.removesuffix(".weight"))
    info = model.plain(name, reversed(shape) if is_transposed else shape)
    return PackedWeight(info, {"": name, **parts}, _dequantizer_4bit(is_transposed))


def _read_state(model: QuantizedModel, name: str) -> dict[str, object]:
    """The settings of a weight, which bitsandbytes keeps as JSON in a tensor of bytes."""
    try:
        settings = json.loads(bytes(model.checkpoint.load(name).tolist()))
    except ValueError as error:
        raise model.damaged(name, f"is not valid JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _dequantizer_4bit(is_transposed: bool) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        import bitsandbytes.functional as bnb
        import torch

        # `bnb_4bit_quant_storage` may give the bytes any type; the kernels need bytes.
        packed = parts.pop("").view(torch.uint8)
        state = bnb.QuantState.from_dict(parts, device=torch.device("cpu"))
        weight: torch.Tensor = bnb.dequantize_4bit(packed, state)
        return weight.T.contiguous() if is_transposed else weight

    return dequantize


def _int8(model: QuantizedModel, name: str) -> PackedWeight:
    module = name.removesuffix(".weight")
    scales, layout = f"{module}.SCB", f"{module}.weight_format"
    shape = model.tensors[name].shape
    if scales not in model.tensors or len(shape) != 2:
        raise model.damaged(name, f"is int8 without its scales {scales!r}")
    if model.tensors[scales].shape != shape[:1]:
        raise model.damaged(name, f"has {model.tensors[scales].shape} scales for {shape[0]} rows")
    parts = {"weight": name, "SCB": scales}
    if layout in model.tensors:
        if int(model.checkpoint.load(layout)):
            raise model.damaged(name, "is stored in the tiles of an old GPU's kernels")
        parts["weight_format"] = layout
    is_transposed = model.is_conv1d(module)
    info = model.plain(name, reversed(shape) if is_transposed else shape)
    return PackedWeight(info, parts, _dequantizer_int8(is_transposed))


def _dequantizer_int8(is_transposed: bool) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        import bitsandbytes.functional as bnb

        weight: torch.Tensor = bnb.int8_vectorwise_dequant(parts["weight"], parts["SCB"])
        return weight.T.contiguous() if is_transposed else weight

    return dequantize
