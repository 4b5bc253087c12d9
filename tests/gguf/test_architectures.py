"""Architectures of the converter, each as a tiny random model: both make the same GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from packager.model.checkpoint import FolderCheckpoint
from tests.merge.gguf_compared import gguf_differences

# By `model_type`: dense, with experts, with states instead of attention, with shared projections.
MODEL_TYPES = (
    "afmoe", "apertus", "arcee", "bloom", "cohere", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4",
    "falcon_mamba", "gemma", "gemma2", "glm4_moe", "gpt_bigcode", "gpt_oss", "granite",
    "granitemoe", "granitemoehybrid", "hunyuan_v1_dense", "lfm2", "llama", "mamba",
    "minicpm3", "mistral", "mixtral", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmoe",
    "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
# A configuration class takes those of these names that it knows.
_SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "d_model": 64, "n_embed": 64,
    "intermediate_size": 128, "ffn_dim": 128, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def make_model(model_type: str, folder: Path) -> None:
    """Writes a checkpoint without a tokenizer."""
    import torch
    import transformers

    config_class: Any = transformers.CONFIG_MAPPING[model_type]
    known = {name for base in config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    config = config_class(**{name: size for name, size in _SHAPE.items() if name in known})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"architectures": [type(model).__name__]})
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_gguf_equals_the_converters_own(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    make_model(model_type, folder)
    checkpoint = FolderCheckpoint(folder)
    assert gguf_differences(checkpoint, folder, tmp_path / "gguf", monkeypatch) == []
