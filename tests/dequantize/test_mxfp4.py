"""gpt-oss's packed experts are what transformers makes of them, whole and in pieces."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.dequantize.quantized import dequantized, same

NAME = "model.layers.0.mlp.experts.down_proj"


def test_experts_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (5, 24, 2, 16), dtype=torch.uint8, generator=generator)
    exponents = torch.randint(100, 140, (5, 24, 2), dtype=torch.uint8, generator=generator)

    found = dequantized(
        tmp_path / "m",
        {f"{NAME}_blocks": blocks, f"{NAME}_scales": exponents, f"{NAME}_bias": torch.ones(5, 24)},
        {"quant_method": "mxfp4"},
    )

    wanted = convert_moe_packed_tensors(blocks, exponents, dtype=torch.bfloat16)
    assert found.tensors[NAME].shape == (5, 64, 24) == tuple(wanted.shape)
    assert same(found.load(NAME), wanted)
    assert same(torch.cat(list(found.blocks(NAME, 2))), wanted)
    assert set(found.tensors) == {NAME, f"{NAME}_bias"}
