"""gpt-oss's packed experts are what transformers makes of them, whole and in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.model.dequantize.quantized import dequantized, same

NAME = "model.layers.0.mlp.experts.down_proj"


def test_experts_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (5, 24, 2, 16), dtype=torch.uint8, generator=generator)
    exponents = torch.randint(100, 140, (5, 24, 2), dtype=torch.uint8, generator=generator)

    checkpoint = dequantized(
        tmp_path / "m",
        {f"{NAME}_blocks": blocks, f"{NAME}_scales": exponents, f"{NAME}_bias": torch.ones(5, 24)},
        {"quant_method": "mxfp4"},
    )

    wanted = convert_moe_packed_tensors(blocks, exponents, dtype=torch.bfloat16)
    assert checkpoint.tensors[NAME].shape == (5, 64, 24) == tuple(wanted.shape)
    assert same(checkpoint.load(NAME), wanted)
    assert same(torch.cat(list(checkpoint.blocks(NAME, 2))), wanted)
    assert set(checkpoint.tensors) == {NAME, f"{NAME}_bias"}


def test_a_model_is_the_one_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GptOssConfig, Mxfp4Config

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    tensors = dict(model.state_dict())
    for layer in range(2):
        for projection, rows, columns in (("gate_up", 64, 64), ("down", 64, 32)):
            name = f"model.layers.{layer}.mlp.experts.{projection}_proj"
            del tensors[name]
            tensors[f"{name}_blocks"] = torch.randint(
                0, 256, (4, rows, columns // 32, 16), dtype=torch.uint8
            )
            tensors[f"{name}_scales"] = torch.randint(
                115, 125, (4, rows, columns // 32), dtype=torch.uint8
            )
    settings = json.loads((tmp_path / "plain" / "config.json").read_text())
    checkpoint = dequantized(tmp_path / "m", tensors, {"quant_method": "mxfp4"}, **settings)

    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype="auto", quantization_config=Mxfp4Config(dequantize=True)
    ).state_dict()
    assert set(checkpoint.tensors) == set(loaded)
    assert all(same(checkpoint.load(name), loaded[name]) for name in loaded)
