"""compressed-tensors, as llm-compressor writes it: packed integers, int8, FP8."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from packager.model.dequantize.packed import (
    PackedWeight,
    Quantization,
    QuantizedModel,
    require_library,
)

if TYPE_CHECKING:
    import torch

_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
_PARTS = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
# Settings that change weights in ways that the quantized tensors alone do not show.
_CHANGING = ("sparsity_config", "transform_config")


def find_compressed_tensors(model: QuantizedModel) -> Quantization:
    """The weights that compressed-tensors has packed; reads the `weight_shape` of each.

    Raises:
        UnsupportedError: for other formats (NVFP4, 2:4 sparsity, ...), for transforms, and if
            compressed-tensors is not installed.
        CorruptFileError: with the name of a weight without its scales.
    """
    for key in _CHANGING:
        value = model.settings.get(key)
        if isinstance(value, dict) and value.get("format") != "dense" and value:
            raise model.refuse(f"`{key}` {str(value)[:80]}")
    groups = model.settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise model.refuse("no `config_groups`")
    schemes = [_scheme(model, group) for group in groups.values() if isinstance(group, dict)]
    weights = []
    for name in model.tensors:
        module, _, part = name.rpartition(".")
        if part in ("weight_packed", "weight") and f"{module}.weight_scale" in model.tensors:
            weights.append(_packed(model, name, module, _scheme_of(module, schemes)))
    labels = dict.fromkeys(_label(scheme) for scheme in schemes)
    label = f"compressed-tensors, {' and '.join(labels)}"
    require_library("compressed_tensors", "compressed-tensors", label)
    return Quantization(label, tuple(weights))


def _scheme(model: QuantizedModel, group: Mapping[str, object]) -> dict[str, object]:
    """A group of the configuration with its format, which is checked."""
    chosen = group.get("format") or model.settings.get("format")
    if chosen not in _FORMATS or not isinstance(group.get("weights"), dict):
        raise model.refuse(f"`format` {chosen!r} of compressed-tensors")
    return {**group, "format": chosen}


def _scheme_of(module: str, schemes: list[dict[str, object]]) -> dict[str, object]:
    """The scheme of a module: one that names it precedes one for a kind of layer (`Linear`)."""
    for scheme in schemes:
        targets = scheme.get("targets")
        for target in targets if isinstance(targets, list) else []:
            pattern = str(target)
            if pattern == module or (
                pattern.startswith("re:") and re.match(pattern.removeprefix("re:"), module)
            ):
                return scheme
    return next((s for s in schemes if not _is_by_name(s)), schemes[0])


def _is_by_name(scheme: Mapping[str, object]) -> bool:
    targets = scheme.get("targets")
    return isinstance(targets, list) and all(str(t).startswith("re:") or "." in t for t in targets)


def _label(scheme: Mapping[str, object]) -> str:
    weights = scheme["weights"]
    assert isinstance(weights, dict)
    return f"{weights.get('type', 'int')}{weights.get('num_bits')} per {weights.get('strategy')}"


def _packed(
    model: QuantizedModel, name: str, module: str, scheme: dict[str, object]
) -> PackedWeight:
    parts = {name.rpartition(".")[2]: name}
    parts |= {p: f"{module}.{p}" for p in _PARTS if f"{module}.{p}" in model.tensors}
    shape = model.tensors[name].shape
    if "weight_packed" in parts:
        if "weight_shape" not in parts:
            raise model.damaged(f"{module}.weight", "is packed without its `weight_shape`")
        shape = tuple(int(n) for n in model.checkpoint.load(parts["weight_shape"]))
    return PackedWeight(model.plain(f"{module}.weight", shape), parts, _dequantizer(scheme))


def _dequantizer(
    scheme: dict[str, object],
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        compressor = BaseCompressor.get_value_from_registry(scheme["format"])
        typed = QuantizationScheme.model_validate(scheme)
        weight: torch.Tensor = compressor.decompress(parts, typed)["weight"]
        return weight

    return dequantize
