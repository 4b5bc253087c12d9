"""Random models of well-known shapes, each with an adapter, for measuring."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.safetensors_writer import Entry, Fill, write_file, write_sharded
from testing.vocabularies import FAMILIES, Kind, write_tokenizer

METHODS = ("lora", "dora", "loha")
_SHARD_BYTES = 5_000_000_000
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """A model's family, its configuration's sizes, and whether its embeddings are tied."""

    kind: Kind
    description: str
    sizes: dict[str, int]
    is_tied: bool = True


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter on all linear layers, including the experts of a mixture."""

    method: str = "lora"
    rank: int = 16

    def __str__(self) -> str:
        """In words."""
        name = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa"}[self.method]
        return f"{name} r={self.rank}, all linear layers"


_QWEN3_600M = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
_LLAMA_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_QWEN3_MOE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
SHAPES = {
    "small": Shape("qwen3", "10 layers of Qwen3 0.6B", _QWEN3_600M | {"num_hidden_layers": 10}),
    "0.6b": Shape("qwen3", "Qwen3 0.6B", _QWEN3_600M | {"num_hidden_layers": 28}),
    "1.2b": Shape("llama", "Llama 3.2 1B", _LLAMA_1B),
    "3b": Shape("llama", "Llama 3.2 3B", _LLAMA_3B),
    "8b": Shape("llama", "Llama 3.1 8B", _LLAMA_8B, is_tied=False),
    "moe-3b": Shape(
        "qwen3moe", "16 layers of Qwen3 30B A3B, 32 experts in each", _QWEN3_MOE, is_tied=False
    ),
}


def make_inputs(
    shape: Shape,
    folder: Path,
    llama_cpp: Path,
    adapter: Adapter | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> tuple[Path, Path, int]:
    """Writes a random bf16 base, and an adapter for all its linear layers, tensor by tensor.

    The layers, configurations and tensor names come from transformers and PEFT, whose model is
    built on the meta device, without values. Experts are stored one by one, as in published
    checkpoints; PEFT tunes them together (`target_parameters`), with twice the rank for the two
    matrices that transformers keeps as one.

    Returns:
        The base's folder, the adapter's folder, and the number of the base's weights.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    base, tuned = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    tuned.mkdir()
    config = _config(shape, write_tokenizer(shape.kind, base, llama_cpp))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    config.save_pretrained(base)
    model.generation_config.save_pretrained(base)
    # A tied output is the same parameter under a second name, and is not saved.
    stored = revert_weight_conversion(model, dict(model.named_parameters()))
    entries = [Entry(name, tuple(value.shape)) for name, value in stored.items()]
    norms = {entry.name for entry in entries if len(entry.shape) == 1}
    write_sharded(base, entries, "BF16", _normal_values(norms, seed=0), shard_bytes)
    _write_adapter(model, base, tuned, adapter or Adapter())
    return base, tuned, sum(entry.elements for entry in entries)


def parameter_count(shape: Shape) -> int:
    """Returns the number of weights without small vectors, for the largest vocabulary we use."""
    size = shape.sizes
    hidden, heads = size["hidden_size"], size["num_attention_heads"]
    attention = 2 * (heads + size["num_key_value_heads"]) * size["head_dim"] * hidden
    width = size.get("num_experts", 0) * size.get("moe_intermediate_size", 0)
    layer = attention + 3 * hidden * (width or size["intermediate_size"])
    return size["num_hidden_layers"] * layer + 152_000 * hidden * (1 if shape.is_tied else 2)


def _write_adapter(model: Any, base: Path, folder: Path, adapter: Adapter) -> None:
    """Writes what PEFT's `save_pretrained` writes, and the tokenizer files that a Trainer adds."""
    import peft
    import torch

    with torch.device("meta"):
        tuned = peft.get_peft_model(model, _adapter_config(adapter))
    config = tuned.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = str(base), True
    config.save_pretrained(folder)
    state = peft.get_peft_model_state_dict(tuned)
    entries = [Entry(name, tuple(value.shape)) for name, value in state.items()]
    magnitudes = {entry.name for entry in entries if "magnitude_vector" in entry.name}
    # `lora_B` starts as zeros, which would change nothing, so it is filled too.
    values = _normal_values(magnitudes, seed=1)
    write_file(folder / "adapter_model.safetensors", entries, "F32", values)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(base / name, folder / name)


def _adapter_config(adapter: Adapter) -> Any:
    import peft

    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "target_modules": "all-linear",
    }
    if adapter.method == "loha":
        return peft.LoHaConfig(**common, alpha=2 * adapter.rank)
    use_dora = adapter.method == "dora"
    return peft.LoraConfig(**common, lora_alpha=2 * adapter.rank, use_dora=use_dora)


def _normal_values(ones: set[str], seed: int) -> Fill:
    """Fills with normal values of deviation 0.02, as at initialisation; `ones` names the rest."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def fill(name: str, count: int) -> torch.Tensor:
        if name in ones:
            return torch.ones(count)
        return torch.empty(count).normal_(std=0.02, generator=generator)

    return fill


def _config(shape: Shape, vocab_size: int) -> Any:
    import transformers

    family = FAMILIES[shape.kind]
    classes = {
        "qwen3": transformers.Qwen3Config,
        "qwen3moe": transformers.Qwen3MoeConfig,
        "llama": transformers.LlamaConfig,
    }
    return classes[shape.kind](
        **shape.sizes,
        vocab_size=vocab_size,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=family.bos_id,
        eos_token_id=list(family.eos_ids),
    )


def main(argv: list[str]) -> None:
    """Makes the inputs: `python -m bench.model SHAPE METHOD RANK FOLDER LLAMA_CPP`.

    It is a separate process, so that none of its memory is part of a measurement.
    """
    shape, method, rank, folder, llama_cpp = argv
    adapter = Adapter(method, int(rank))
    parameters = make_inputs(SHAPES[shape], Path(folder), Path(llama_cpp), adapter)[2]
    # Written last: a folder without this file is incomplete.
    record = {"shape": shape, "adapter": str(adapter), "parameters": parameters}
    (Path(folder) / "bench.json").write_text(json.dumps(record) + "\n", "utf-8")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
