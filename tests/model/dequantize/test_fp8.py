"""FP8 weights times their scales, rounded once, are what transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from packager.errors import CorruptFileError, UnsupportedError
from tests.model.dequantize.quantized import dequantized, same

NAME = "model.layers.0.mlp.up_proj.weight"
BLOCK = [64, 32]


def fp8(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(*shape, generator=generator) * 50).to(torch.float8_e4m3fn)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)) * 1e-3 + 1e-4


def by_transformers(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight_16_bit: torch.Tensor = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    return weight_16_bit


@pytest.mark.parametrize(
    ("shape", "scale", "block"),
    [
        ((128, 96), scales(2, 3), BLOCK),
        ((128, 96), scales(2, 3).to(torch.bfloat16), BLOCK),
        ((128, 96), torch.randint(110, 130, (2, 3), dtype=torch.uint8), BLOCK),
        ((128, 96), torch.tensor([[0.5, 4, 1], [2, 8, 0.25]]).to(torch.float8_e8m0fnu), BLOCK),
        ((128, 96), scales(128, 1), None),
        ((128, 96), torch.tensor(0.003), None),
        ((128, 96), torch.tensor([0.003]), None),
        ((4, 128, 96), scales(4, 2, 3), BLOCK),
    ],
    ids=["block", "bf16", "exponents", "e8m0", "channel", "tensor", "tensor of one", "experts"],
)
def test_weights_are_those_of_transformers(
    shape: tuple[int, ...], scale: torch.Tensor, block: list[int] | None, tmp_path: Path
) -> None:
    name = NAME if len(shape) == 2 else "model.layers.0.mlp.experts.gate_up_proj"
    weight = fp8(*shape)
    tensors = {name: weight, f"{name}_scale_inv": scale, "model.norm.weight": torch.ones(96)}

    checkpoint = dequantized(
        tmp_path / "m", tensors, {"quant_method": "fp8", "weight_block_size": block}
    )

    assert same(checkpoint.load(name), by_transformers(weight, scale))
    assert set(checkpoint.tensors) == {"model.norm.weight", name}
    assert same(checkpoint.load("model.norm.weight"), torch.ones(96))


def test_a_shorter_last_block_has_its_own_scale(tmp_path: Path) -> None:
    """DeepSeek's `kv_a_proj` has 576 rows in blocks of 128: the last block has half of them."""
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    # 96 rows in blocks of 64 make two scales; halves of 48 rows would be wrong.
    weight, scale = fp8(96, 80), scales(2, 3)

    checkpoint = dequantized(
        tmp_path / "m",
        {NAME: weight, f"{NAME}_scale_inv": scale},
        {"quant_method": "fp8", "weight_block_size": BLOCK},
    )

    wanted = _dequantize_fp8_weight(weight, scale, BLOCK, torch.float32).to(torch.bfloat16)
    assert same(checkpoint.load(NAME), wanted)


@pytest.mark.parametrize("scale_shape", [(32, 1), (32,)])
def test_fbgemm_has_a_scale_for_each_row(scale_shape: tuple[int, ...], tmp_path: Path) -> None:
    weight, scale = fp8(32, 16), scales(*scale_shape)
    tensors = {
        NAME: weight,
        f"{NAME}_scale": scale,
        "model.layers.0.mlp.up_proj.input_scale_ub": torch.tensor([1200.0]),
    }

    checkpoint = dequantized(
        tmp_path / "m", tensors, {"quant_method": "fbgemm_fp8"}, dtype="float16"
    )

    assert list(checkpoint.tensors) == [NAME]
    assert same(checkpoint.load(NAME), (weight.float() * scale.reshape(32, 1)).to(torch.float16))


@pytest.mark.parametrize(
    ("tensors", "settings", "error"),
    [
        ({NAME: fp8(32, 16)}, {}, CorruptFileError),
        ({NAME: fp8(32, 16), f"{NAME}_scale_inv": scales(5, 1)}, {}, CorruptFileError),
        ({NAME: fp8(32, 16)}, {"weight_block_size": 128}, UnsupportedError),
        ({NAME: torch.ones(4, 4, dtype=torch.int8)}, {}, CorruptFileError),
    ],
    ids=["no scales", "other scales", "odd block", "other bytes"],
)
def test_scales_that_do_not_fit_are_refused(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], error: type, tmp_path: Path
) -> None:
    with pytest.raises(error, match=r"up_proj|weight_block_size"):
        dequantized(tmp_path / "m", tensors, {"quant_method": "fp8", **settings})
