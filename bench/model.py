"""Random models of well-known shapes, with a LoRA, to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models import make_adapter
from tests.vocabularies import FAMILIES, Kind, write_tokenizer


@dataclass(frozen=True)
class Shape:
    """A model's family and the sizes in its configuration."""

    kind: Kind
    description: str
    sizes: dict[str, int]


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
SHAPES = {
    "small": Shape("qwen3", "10 layers of Qwen3 0.6B", _QWEN3_600M | {"num_hidden_layers": 10}),
    "0.6b": Shape("qwen3", "Qwen3 0.6B", _QWEN3_600M | {"num_hidden_layers": 28}),
    "1.2b": Shape("llama", "Llama 3.2 1B", _LLAMA_1B),
}


def make_inputs(shape: Shape, folder: Path, llama_cpp: Path) -> tuple[Path, Path, int]:
    """A bf16 base with tied embeddings, a LoRA (r=16, all linear layers), the base's size.

    Returns:
        the base's folder, the adapter's folder, the number of the base's weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    base, adapter = folder / "base", folder / "lora"
    base.mkdir()
    config = _config(shape, write_tokenizer(shape.kind, base, llama_cpp))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(base)
    make_adapter(base, adapter, r=16, alpha=32)
    return base, adapter, model.num_parameters()


def _config(shape: Shape, vocab_size: int) -> Any:
    import transformers

    family = FAMILIES[shape.kind]
    classes = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}
    return classes[shape.kind](
        **shape.sizes,
        vocab_size=vocab_size,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=family.bos_id,
        eos_token_id=list(family.eos_ids),
    )


def main(argv: list[str]) -> None:
    """`python -m bench.model SHAPE FOLDER LLAMA_CPP`; prints the number of weights.

    A process of its own: what it leaves in memory would be counted to nobody.
    """
    shape, folder, llama_cpp = argv
    print(make_inputs(SHAPES[shape], Path(folder), Path(llama_cpp))[2])


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
