"""Small random models that see, as they are published, and adapters for all of their parts.

Nothing here imports ftpack: adapters and expected values come from PEFT and transformers alone.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from testing.vocabularies import Kind, write_tokenizer

VisionKind = Literal["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "smolvlm"]
VISION_KINDS: tuple[VisionKind, ...] = get_args(VisionKind)
_TOKENIZERS: dict[VisionKind, Kind] = {
    "gemma3": "gemma3",
    "mistral3": "llama",
    "qwen2_5_vl": "qwen3",
    "qwen3_vl": "qwen3",
    "smolvlm": "llama",
}
# What says how images are prepared, by the keys of the models' own files.
_QWEN_PROCESSOR = {"temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136,
                   "max_pixels": 1 << 20}  # fmt: skip
_PREPROCESSORS: dict[VisionKind, dict[str, Any]] = {
    "gemma3": {"image_seq_length": 4, "size": {"height": 56, "width": 56}},
    "mistral3": {"patch_size": 14, "size": {"longest_edge": 56}},
    "qwen2_5_vl": {"patch_size": 14, **_QWEN_PROCESSOR},
    "qwen3_vl": {"patch_size": 16, **_QWEN_PROCESSOR,
                 "size": {"shortest_edge": 65536, "longest_edge": 1 << 20}},
    "smolvlm": {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}},
}  # fmt: skip


def make_vision_model(kind: VisionKind, folder: Path, llama_cpp: Path) -> Path:
    """Writes a checkpoint of `kind` in bf16, with a tokenizer and a preprocessor's file."""
    import torch

    folder.mkdir(parents=True)
    vocab_size = write_tokenizer(_TOKENIZERS[kind], folder, llama_cpp)
    if kind == "mistral3":  # its converter asks for the tokens between rows of an image
        for path in folder.glob("tokenizer*.json"):
            text = path.read_text(encoding="utf-8")
            for number, token in enumerate(("[IMG_BREAK]", "[IMG_END]")):
                text = text.replace(f"<|reserved_special_token_{number}|>", token)
            path.write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    model = _random_model(kind, vocab_size).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if kind == "gemma3":
        _rename(folder / "model.safetensors", {"vision_tower.": "vision_tower.vision_model."})
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **_PREPROCESSORS[kind]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def _random_model(kind: VisionKind, vocab_size: int) -> Any:
    import transformers

    text: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
    }
    sight: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    siglip = {**sight, "num_hidden_layers": 2, "num_attention_heads": 2}
    qwen = {**sight, "depth": 3, "num_heads": 2, "out_hidden_size": 256}
    if kind == "gemma3":
        return transformers.Gemma3ForConditionalGeneration(
            transformers.Gemma3Config(
                text_config={**text, "query_pre_attn_scalar": 64, "sliding_window": 128},
                vision_config={
                    **siglip, "image_size": 56, "patch_size": 14, "vision_use_head": False
                },
                mm_tokens_per_image=4,
            )
        )  # fmt: skip
    if kind == "mistral3":
        return transformers.Mistral3ForConditionalGeneration(
            transformers.Mistral3Config(
                text_config={**text, "model_type": "mistral"},
                vision_config={
                    **siglip, "num_hidden_layers": 3, "head_dim": 32, "image_size": 56,
                    "patch_size": 14,
                },
                spatial_merge_size=2,
            )
        )  # fmt: skip
    if kind == "smolvlm":
        # The converter takes the text model's class from here, as in the published files.
        text |= {"architectures": ["VLlama3ForCausalLM"], "tie_word_embeddings": False}
        return transformers.SmolVLMForConditionalGeneration(
            transformers.SmolVLMConfig(
                text_config={**text, "model_type": "llama"},
                vision_config={**siglip, "image_size": 64, "patch_size": 16},
                scale_factor=2,
            )
        )
    rope = {"rope_type": "default", "rope_theta": 1e6}
    if kind == "qwen2_5_vl":
        return transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(
                text_config={**text, "rope_parameters": {**rope, "mrope_section": [8, 12, 12]}},
                vision_config={
                    **qwen, "fullatt_block_indexes": [2], "window_size": 112, "patch_size": 14
                },
            )
        )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            text_config={**text, "rope_parameters": {**rope, "mrope_section": [12, 10, 10]}},
            vision_config={
                **qwen, "deepstack_visual_indexes": [1], "patch_size": 16,
                "num_position_embeddings": 64,
            },
        )
    )  # fmt: skip


def _rename(path: Path, prefixes: Mapping[str, str]) -> None:
    """Gives tensors the names of the published files, which transformers maps both ways."""
    from safetensors.torch import load_file, save_file

    renamed = {}
    for name, tensor in load_file(path).items():
        old = next((old for old in prefixes if name.startswith(old)), "")
        renamed[prefixes.get(old, "") + name.removeprefix(old)] = tensor
    save_file(renamed, path, {"format": "pt"})


def make_vision_adapter(
    base: Path, folder: Path, targets: str = "all-linear", **options: Any
) -> Path:
    """Writes a LoRA by PEFT itself, on every linear layer unless said else; nothing is zero."""
    import peft
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, **options)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if ".lora_" in name and "magnitude" not in name:
                parameter.normal_(0, 0.02)
    tuned.save_pretrained(folder)
    return folder


def merge_vision_with_peft(base: Path, adapter: Path, out: Path) -> Path:
    """`merge_and_unload` and `save_pretrained`, with the base's describing files."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja", ".model") and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    return out


def png(width: int, height: int) -> bytes:
    """A picture in some colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    rows = (
        b"\0" + b"".join(bytes((3 * x % 256, 5 * y % 256, 128)) for x in range(width))
        for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", head),
        chunk(b"IDAT", zlib.compress(b"".join(rows))),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
