"""`ftpack merge` writes a folder that transformers loads, and overwrites one only when told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.checkpoint import FolderCheckpoint
from packager.errors import OutputExistsError
from packager.merge import save
from packager.pipeline.merging import merge
from packager.plan import Request
from packager.progress import Silent


def test_transformers_loads_what_was_merged_and_answers_as_the_adapter_model(
    adapter: Callable[..., Path], small_model: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, lora = small_model("llama"), adapter("llama")

    merge(Request(str(lora)), tmp_path / "merged", Silent())

    ids = torch.tensor([[128000, 9906, 1917]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    usual = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"), lora
    ).merge_and_unload()
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, usual(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == (lora / "chat_template.jinja").read_text()


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_what_is_read_is_never_overwritten(
    which: str, adapter: Callable[..., Path], small_model: Callable[..., Path]
) -> None:
    folder = small_model("llama") if which == "base" else adapter("llama")
    before = sorted(path.name for path in folder.iterdir())

    with pytest.raises(OutputExistsError, match="read from"):
        merge(Request(str(adapter("llama")), force=True), folder, Silent())

    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_model_is_overwritten_only_with_force_and_then_leaves_no_shard_behind(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    with monkeypatch.context() as patch:
        patch.setattr(save.save_safetensors, "__defaults__", (40_000_000,))
        merge(Request(str(adapter("llama"))), out, Silent())
    assert (out / "model.safetensors.index.json").is_file()
    with pytest.raises(OutputExistsError, match=r"config\.json"):
        merge(Request(str(adapter("llama"))), out, Silent())

    merge(Request(str(adapter("llama")), force=True), out, Silent())

    assert sorted(path.name for path in out.glob("model*")) == ["model.safetensors"]
    assert FolderCheckpoint(out).tensors
