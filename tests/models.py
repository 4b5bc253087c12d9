"""Small random models and adapters for tests: real vocabularies, real layouts, no download.

`make_model` builds a Hugging Face checkpoint, `make_adapter` a PEFT adapter whose delta is not
zero. `cached_model` keeps what it built in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testing import vocabularies
from testing.vocabularies import FAMILIES, Kind, write_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

__all__ = ["Kind", "cached_model", "make_adapter", "make_model", "model_config"]

_SAMPLING: dict[Kind, dict[str, float]] = {
    "llama": {"temperature": 0.6, "top_p": 0.9},
    "qwen3": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "qwen3moe": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "gemma3": {"top_k": 64, "top_p": 0.95},
    "phi3": {},
    "gpt2": {},
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def model_config(kind: Kind, vocab_size: int, *, hidden_size: int, layers: int) -> PretrainedConfig:
    """A configuration with heads of 64 values and a feed-forward of twice `hidden_size`."""
    import transformers

    heads = hidden_size // 64
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocab_size,
            n_embd=hidden_size,
            n_head=heads,
            n_layer=layers,
            n_positions=512,
        )
        config.n_ctx = 512  # the converter reads it; transformers 5 no longer writes it
        return config
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2) if heads % 2 == 0 else 1,
        "max_position_embeddings": 512,
    }
    if kind == "llama":
        return transformers.LlamaConfig(
            **shape,
            head_dim=64,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        )
    if kind == "qwen3":
        return transformers.Qwen3Config(**shape, head_dim=64, tie_word_embeddings=True)
    if kind == "qwen3moe":
        return transformers.Qwen3MoeConfig(
            **shape,
            head_dim=64,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=hidden_size,
            tie_word_embeddings=False,
        )
    if kind == "gemma3":
        return transformers.Gemma3TextConfig(
            **shape, head_dim=64, query_pre_attn_scalar=64, sliding_window=128
        )
    return transformers.Phi3Config(
        **shape,
        original_max_position_embeddings=512,
        sliding_window=256,
        tie_word_embeddings=False,
        pad_token_id=FAMILIES["phi3"].pad_id,
    )


def make_model(
    kind: Kind,
    folder: Path,
    llama_cpp: Path,
    *,
    hidden_size: int = 256,
    layers: int = 2,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Path:
    """Writes a random checkpoint of `kind` (bf16 unless `dtype` says else) into `folder`.

    `hidden_size=192` gives rows that K-quants cannot take (they need multiples of 256), so that
    llama.cpp falls back to other types.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(kind, folder, llama_cpp)
    config = model_config(kind, vocab_size, hidden_size=hidden_size, layers=layers)
    family = FAMILIES[kind]
    config.bos_token_id, config.eos_token_id = family.bos_id, list(family.eos_ids)
    config.pad_token_id = family.pad_id
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.bfloat16)
    _fill_vectors(model)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = family.bos_id, list(family.eos_ids)
    generation.pad_token_id = family.pad_id
    if _SAMPLING[kind]:
        generation.update(do_sample=True, **_SAMPLING[kind])
    model.save_pretrained(folder)
    return folder


def make_adapter(
    model_folder: Path,
    folder: Path,
    *,
    r: int = 16,
    alpha: int = 32,
    targets: str | list[str] = "all-linear",
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 1,
    with_tokenizer: bool = True,
    **lora_options: Any,
) -> Path:
    """Writes a LoRA adapter for the model in `model_folder`, saved by PEFT itself.

    The values are random, `lora_B` too (PEFT starts it at zero, which would prove nothing).
    `lora_options` go to `peft.LoraConfig` as they are (`use_dora`, `modules_to_save`, `bias`).
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
    lora_options.setdefault("fan_in_fan_out", model.config.model_type == "gpt2")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        target_modules=targets,
        use_rslora=use_rslora,
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        **lora_options,
    )
    tuned = peft.get_peft_model(model, config)
    _fill_adapter(tuned, dtype or torch.float32)
    tuned.peft_config["default"].base_model_name_or_path = str(model_folder)
    tuned.save_pretrained(folder)
    if with_tokenizer:
        for name in _TOKENIZER_FILES:
            shutil.copyfile(model_folder / name, folder / name)
    return folder


def cached_model(kind: Kind, llama_cpp: Path, **options: Any) -> Path:
    """`make_model`'s folder, built once per kind, options, library versions and builder code."""
    builders = (Path(__file__), Path(vocabularies.__file__))
    key = hashlib.sha256(
        b"\0".join(
            [
                *(path.read_bytes() for path in builders),
                *(f"{p} {version(p)}".encode() for p in ("torch", "transformers", "tokenizers")),
                json.dumps(options, sort_keys=True, default=str).encode(),
            ]
        )
    ).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftpack" / "tests"
    folder = root / f"{kind}-{key}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial.", dir=root))
        make_model(kind, building, llama_cpp, **options)
        try:
            building.rename(folder)
        except OSError:  # another test process was faster: its model is the same
            shutil.rmtree(building)
    return folder


def _fill_vectors(model: torch.nn.Module) -> None:
    """Random biases and norms: fresh ones are all 0 or 1, and a mix-up would go unseen."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def _fill_adapter(tuned: torch.nn.Module, dtype: torch.dtype) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" not in name:
                # Whole modules, biases, rows of tokens: PEFT starts them as the base has them.
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
                continue
            # Of an embedding's pair it is the first that PEFT starts at zero.
            if "lora_B" in name or "lora_embedding_A" in name:
                torch.nn.init.normal_(parameter, std=0.02)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
            parameter.data = parameter.data.to(dtype)
