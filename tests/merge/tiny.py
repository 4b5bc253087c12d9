"""Tiny random models, and adapters for them that PEFT itself makes, saves and merges.

Nothing here imports ftpack: adapters and expected values come from PEFT and transformers alone.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from tests.merge.methods import Method

Kind = Literal["tied", "scaled", "biased", "fused", "conv1d", "moe", "vlm"]
KINDS: dict[Kind, str] = {
    "tied": "Qwen3, tied embeddings",
    "scaled": "Gemma 3, tied and scaled",
    "biased": "Qwen2, untied, with biases",
    "fused": "Phi-3, fused qkv",
    "conv1d": "GPT-2, Conv1D",
    "moe": "Qwen3-MoE, fused experts",
    "vlm": "LLaVA, its language model",
}
VOCABULARY = 96
HIDDEN = 64


def make_base(kind: Kind, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """A random checkpoint: config and weights, no tokenizer."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    dtype = dtype or torch.bfloat16
    if kind == "vlm":
        model = transformers.LlavaForConditionalGeneration(_llava(shape)).to(dtype)
    else:
        configs: dict[str, Any] = {
            "tied": lambda: transformers.Qwen3Config(
                **shape, head_dim=16, tie_word_embeddings=True
            ),
            "scaled": lambda: transformers.Gemma3TextConfig(**shape, head_dim=16),
            "biased": lambda: transformers.Qwen2Config(**shape, tie_word_embeddings=False),
            "fused": lambda: transformers.Phi3Config(
                **shape, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2
            ),
            "conv1d": lambda: transformers.GPT2Config(
                vocab_size=VOCABULARY, n_embd=HIDDEN, n_head=4, n_layer=2, n_positions=64
            ),
            "moe": lambda: transformers.Qwen3MoeConfig(
                **shape,
                head_dim=16,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                tie_word_embeddings=False,
            ),
        }
        config = configs[kind]()
        if kind == "conv1d":
            config.n_ctx = 64  # the converter reads it; transformers 5 no longer writes it
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def _llava(shape: dict[str, Any]) -> Any:
    import transformers

    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**shape, tie_word_embeddings=False),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            projection_dim=16,
        ),
        image_token_index=VOCABULARY - 1,
        image_seq_length=4,
    )


def load_base(folder: Path, kind: Kind) -> Any:
    """The base as the usual route loads it."""
    import transformers

    auto = transformers.AutoModelForCausalLM
    auto = transformers.LlavaForConditionalGeneration if kind == "vlm" else auto
    return auto.from_pretrained(folder, dtype="auto")


def targets(kind: Kind, what: str) -> Any:
    """The modules that are tuned in a kind of model."""
    if what == "linear":
        if kind == "conv1d":
            return ["c_attn", "c_proj", "c_fc"]
        if kind == "fused":
            return ["qkv_proj", "gate_up_proj", "down_proj"]
        if kind == "vlm":
            return r".*language_model.*\.(q_proj|down_proj)"
        return ["q_proj", "o_proj"] if kind == "moe" else ["q_proj", "v_proj", "down_proj"]
    if what == "biased":
        return {"conv1d": ["c_attn"], "fused": ["qkv_proj"]}.get(kind, ["q_proj", "v_proj"])
    if what == "norms":
        return {"conv1d": ["ln_1", "ln_2"]}.get(kind, ["input_layernorm", "norm"])
    if what == "embeddings":
        return ["wte"] if kind == "conv1d" else ["embed_tokens"]
    return ["lm_head"]


def make_adapter(
    base: Path,
    kind: Kind,
    method: Method,
    folder: Path,
    dtype: torch.dtype | None = None,
    rows: int | None = None,
) -> Path:
    """An adapter that PEFT itself made and saved; every trainable tensor is random and not zero.

    With `rows`, the model's vocabulary gets that size before.

    Raises whatever PEFT raises where a method does not take this kind of model.
    """
    import peft
    import torch

    torch.manual_seed(1)
    model = load_base(base, kind)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    options = dict(method.options)
    for name, value in options.items():
        if callable(value):
            options[name] = value(kind)
    known = set(getattr(peft, method.config).__dataclass_fields__)
    options.setdefault("target_modules", targets(kind, method.tuned))
    if kind == "conv1d" and "fan_in_fan_out" in known and method.tuned != "embeddings":
        options.setdefault("fan_in_fan_out", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(
            model, getattr(peft, method.config)(task_type="CAUSAL_LM", **options)
        )
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                    if dtype is not None:
                        parameter.data = parameter.data.to(dtype)
        tuned.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(base)} | method.edit
    path.write_text(json.dumps(config))
    return folder


def merge_with_peft(
    base: Path, kind: Kind, adapter: Path, out: Path, rows: int | None = None
) -> Path:
    """`from_pretrained`, `merge_and_unload`, `save_pretrained`; resized in between, if asked."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_base(base, kind)
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        tuned = peft.PeftModel.from_pretrained(model, str(adapter))
        tuned.merge_and_unload().save_pretrained(out)
    return out
