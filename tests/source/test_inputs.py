"""Tokenizer and chat template are the adapter's, whichever files it and its base keep them in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer

from packager.verbs.merge import merge
from tests.requests import request_for


def add_files_of_version_4(base: Path) -> None:
    """Two more files that repeat parts of `tokenizer_config.json`, and are read after it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    (base / "added_tokens.json").write_text(json.dumps(tokenizer.get_added_vocab()))
    (base / "special_tokens_map.json").write_text(json.dumps(tokenizer.special_tokens_map))


def test_the_merged_tokenizer_is_the_adapters_if_the_base_has_files_of_version_4(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(small_model("qwen3"), tmp_path / "base")
    add_files_of_version_4(base)
    lora = shutil.copytree(adapter("qwen3"), tmp_path / "lora")
    own = AutoTokenizer.from_pretrained(lora)
    own.add_tokens(["<think2>"])
    own.eos_token, own.pad_token = "<think2>", "<|im_start|>"
    own.save_pretrained(lora)
    before = AutoTokenizer.from_pretrained(base)

    merge(request_for(lora, base=base), tmp_path / "merged")

    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for name in ("eos_token", "pad_token"):
        assert getattr(merged, name) == getattr(own, name) != getattr(before, name)
    assert merged.get_vocab() == own.get_vocab()


def test_the_merged_chat_template_is_the_adapters_if_only_its_tokenizer_config_has_it(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(small_model("qwen3"), tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ 'of the base' }}")
    lora = shutil.copytree(adapter("qwen3"), tmp_path / "lora")
    trained = (lora / "chat_template.jinja").read_text()
    (lora / "chat_template.jinja").unlink()
    config = json.loads((lora / "tokenizer_config.json").read_text())
    (lora / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": trained}))

    merge(request_for(lora, base=base), tmp_path / "merged")

    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == trained
