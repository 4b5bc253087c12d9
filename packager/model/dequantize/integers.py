"""GPTQ and AWQ: integers of 2, 4 or 8 bits, with a scale and a zero point per group of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from packager.model.dequantize.packed import PackedWeight, Quantization, QuantizedModel

if TYPE_CHECKING:
    import torch

_GPTQ_BITS = (2, 4, 8)
_WORD_BITS = 32
# The order in which AWQ's kernels expect the eight columns of a word.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def find_gptq(model: QuantizedModel) -> Quantization:
    """The weights that GPTQ has packed (`qweight`, `qzeros`, `scales`, `g_idx`).

    Raises:
        UnsupportedError: for 3 bits, and for layouts of specific kernels (Marlin, BitBLAS).
        CorruptFileError: with the name of a weight whose parts do not fit.
    """
    bits = model.settings.get("bits")
    layout = model.settings.get("checkpoint_format") or "gptq"
    if bits not in _GPTQ_BITS:
        raise model.refuse(f"`bits` {bits!r} of GPTQ")
    if layout not in ("gptq", "gptq_v2"):
        raise model.refuse(f"`checkpoint_format` {layout!r} of GPTQ")
    assert isinstance(bits, int)
    # The first layout stores zero points minus one, subtracted from each word as a whole: a zero
    # point of 0 borrows a bit from its neighbour, and adding to the word returns it.
    borrow = sum(1 << shift for shift in range(0, _WORD_BITS, bits)) if layout == "gptq" else 0
    weights = [_gptq(model, module, bits, borrow) for module in _modules(model)]
    return Quantization(f"GPTQ, {bits} bits", tuple(weights))


def find_awq(model: QuantizedModel) -> Quantization:
    """The weights that AWQ has packed (`qweight`, `qzeros`, `scales`), in its GEMM layout.

    Raises:
        UnsupportedError: for other widths and layouts.
        CorruptFileError: with the name of a weight whose parts do not fit.
    """
    bits = model.settings.get("bits", model.settings.get("w_bit"))
    layout = str(model.settings.get("version") or model.settings.get("format") or "gemm").lower()
    if bits != 4:
        raise model.refuse(f"`bits` {bits!r} of AWQ")
    if layout != "gemm":
        raise model.refuse(f"`version` {layout!r} of AWQ")
    return Quantization("AWQ, 4 bits", tuple(_awq(model, module) for module in _modules(model)))


def _modules(model: QuantizedModel) -> list[str]:
    return [name.removesuffix(".qweight") for name in model.tensors if name.endswith(".qweight")]


def _parts(model: QuantizedModel, module: str, names: Sequence[str]) -> dict[str, str]:
    """The names of a module's matrices by their role, in that order; all of them are there."""
    parts = {name: f"{module}.{name}" for name in names}
    for full in parts.values():
        if full not in model.tensors or len(model.tensors[full].shape) != 2:
            raise model.damaged(f"{module}.weight", f"has no matrix {full!r}")
    return parts


def _gptq(model: QuantizedModel, module: str, bits: int, borrow: int) -> PackedWeight:
    parts = _parts(model, module, ("qweight", "qzeros", "scales"))
    packed, zeros, scales = (model.tensors[full] for full in parts.values())
    per_word = _WORD_BITS // bits
    in_features, out_features = packed.shape[0] * per_word, packed.shape[1]
    groups = scales.shape[0]
    if scales.shape[1] != out_features or zeros.shape != (groups, out_features // per_word):
        raise model.damaged(
            f"{module}.weight",
            f"has {packed.shape} words, {zeros.shape} zero points and {scales.shape} scales",
        )
    if f"{module}.g_idx" in model.tensors:
        parts["g_idx"] = f"{module}.g_idx"
    is_transposed = model.is_conv1d(module)
    shape = (in_features, out_features) if is_transposed else (out_features, in_features)
    info = model.plain(f"{module}.weight", shape)
    return PackedWeight(info, parts, _gptq_dequantizer(bits, borrow, is_transposed))


def _gptq_dequantizer(
    bits: int, borrow: int, is_transposed: bool
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        values = _unpacked(parts["qweight"], bits).transpose(1, 2).flatten(0, 1)
        zeros = _unpacked(parts["qzeros"] + borrow, bits).flatten(1)
        group_of = parts.get("g_idx")
        if group_of is None:
            size = values.shape[0] // zeros.shape[0]
            group_of = torch.arange(values.shape[0]).div(size, rounding_mode="floor")
        rows = group_of.long()
        # In the scales' own element type, as in the libraries' kernels.
        weight = parts["scales"][rows].mul_(values.sub_(zeros[rows]))
        return weight if is_transposed else weight.T.contiguous()

    return dequantize


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """`[rows, columns]` words of 32 bits as `[rows, columns, 32 / bits]` integers (int16)."""
    import torch

    shifts = range(0, _WORD_BITS, bits)
    # One position in the words at a time: all at once need twice the memory, as int32.
    values = torch.empty((*words.shape, len(shifts)), dtype=torch.int16)
    for index, shift in enumerate(shifts):
        values[..., index] = (words >> shift) & ((1 << bits) - 1)
    return values


def _awq(model: QuantizedModel, module: str) -> PackedWeight:
    parts = _parts(model, module, ("qweight", "qzeros", "scales"))
    packed, zeros, scales = (model.tensors[full] for full in parts.values())
    in_features, words = packed.shape
    groups, out_features = scales.shape
    if out_features != 8 * words or zeros.shape != (groups, words) or in_features % max(1, groups):
        raise model.damaged(
            f"{module}.weight",
            f"has {packed.shape} words, {zeros.shape} zero points and {scales.shape} scales",
        )
    is_transposed = model.is_conv1d(module)
    shape = (in_features, out_features) if is_transposed else (out_features, in_features)
    info = model.plain(f"{module}.weight", shape)
    return PackedWeight(info, parts, _awq_dequantizer(is_transposed))


def _awq_dequantizer(is_transposed: bool) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        order = list(_AWQ_ORDER)
        values = _unpacked(parts["qweight"], 4)[..., order].flatten(1)
        zeros = _unpacked(parts["qzeros"], 4)[..., order].flatten(1)
        size = values.shape[0] // zeros.shape[0]
        values.sub_(zeros.repeat_interleave(size, dim=0))
        weight = parts["scales"].repeat_interleave(size, dim=0).mul_(values)
        return weight if is_transposed else weight.T.contiguous()

    return dequantize
