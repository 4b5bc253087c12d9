"""What compressed-tensors has packed is what its own compressors give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from packager.errors import UnsupportedError
from tests.model.dequantize.quantized import dequantized, same

MODULE = "model.layers.0.mlp.up_proj"
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "int4 group": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
    ),
    "int4 group, zero points": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "int8 channel packed": (
        "pack-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
    ),
    "int8 channel": (
        "int-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
    ),
    "fp8 channel": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    ),
    "fp8 tensor": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
    ),
    "fp8 block": (
        "float-quantized",
        {
            "num_bits": 8,
            "type": "float",
            "strategy": "block",
            "block_structure": [32, 32],
            "symmetric": True,
        },
    ),
}


def compress(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A weight as the library packs it, and as it unpacks that."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    layout, weights = SCHEMES[name]
    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights})
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(64, 96, generator=generator).to(torch.bfloat16)
    shape = {"group": (64, 3), "channel": (64, 1), "tensor": (1,), "block": (2, 3)}
    size = shape[weights["strategy"]]
    largest = 448.0 if weights["type"] == "float" else float(2 ** (weights["num_bits"] - 1) - 1)
    state = {"weight": weight, "weight_scale": torch.full(size, 3 / largest, dtype=torch.bfloat16)}
    state["weight_scale"] *= 1 + 0.1 * torch.rand(size, generator=generator).to(torch.bfloat16)
    if not weights["symmetric"]:
        state["weight_zero_point"] = torch.randint(
            -4, 4, size, dtype=torch.int8, generator=generator
        )
    compressor = BaseCompressor.get_value_from_registry(layout)
    packed = compressor.compress(state, scheme)
    return packed, compressor.decompress(packed, scheme)["weight"].to(torch.bfloat16)


def settings(layout: str, *groups: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
    }


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    packed, wanted = compress(name)
    layout, weights = SCHEMES[name]
    tensors = {f"{MODULE}.{part}": tensor for part, tensor in packed.items()}
    tensors[f"{MODULE}.input_scale"] = torch.ones(1)

    checkpoint = dequantized(
        tmp_path / "m", tensors, settings(layout, {"targets": ["Linear"], "weights": weights})
    )

    assert checkpoint.tensors[f"{MODULE}.weight"].shape == (64, 96)
    assert list(checkpoint.tensors) == [f"{MODULE}.weight"]
    assert same(checkpoint.load(f"{MODULE}.weight"), wanted)


@pytest.mark.parametrize("order", [1, -1])
def test_a_group_that_names_a_module_precedes_one_for_all_layers(
    order: int, tmp_path: Path
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    wanted, groups = {}, []
    for module, target, name in (
        (MODULE, "re:.*up_proj$", "fp8 channel"),
        ("model.layers.0.mlp.down_proj", "Linear", "int4 group"),
    ):
        packed, wanted[f"{module}.weight"] = compress(name)
        tensors |= {f"{module}.{part}": tensor for part, tensor in packed.items()}
        layout, weights = SCHEMES[name]
        groups.append({"targets": [target], "weights": weights, "format": layout})

    checkpoint = dequantized(tmp_path / "m", tensors, settings("mixed-precision", *groups[::order]))

    assert all(same(checkpoint.load(name), weight) for name, weight in wanted.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ({"config_groups": {}}, "config_groups"),
    ],
)
def test_other_formats_are_refused_by_name(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    plain = settings("pack-quantized", {"targets": ["Linear"], "weights": SCHEMES["int4 group"][1]})

    with pytest.raises(UnsupportedError, match=named) as error:
        dequantized(tmp_path / "m", {"a.weight": torch.ones(2, 2)}, plain | change)

    assert "--base" in error.value.next_step
