"""`ftpack merge` writes a folder that transformers loads, and overwrites one only when told to."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import NonFiniteError, OutputExistsError
from packager.merge import save
from packager.model.checkpoint import FolderCheckpoint
from packager.package.plan import Request
from packager.progress import Silent
from packager.verbs.merge import merge
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, make_base
from tests.reports import Reports


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


def test_a_refused_merge_leaves_everything_as_it_was(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    diverged, out = tmp_path / "diverged", tmp_path / "merged"
    shutil.copytree(adapter("llama"), diverged)
    weights = load_file(diverged / "adapter_model.safetensors")
    weights[max(weights)][0, 0] = float("nan")
    save_file(weights, diverged / "adapter_model.safetensors")

    with pytest.raises(NonFiniteError):
        merge(Request(str(diverged)), tmp_path / "new" / "below", Silent())
    assert not (tmp_path / "new").exists()

    merge(Request(str(adapter("llama"))), out, Silent())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(NonFiniteError):
        merge(Request(str(diverged), force=True), out, Silent())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_untrained_adapter_is_said_to_change_nothing(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    reports = Reports()
    untrained = tmp_path / "untrained"
    shutil.copytree(adapter("llama"), untrained)
    path = untrained / "adapter_model.safetensors"
    weights = {
        name: 0 * value if ".lora_B." in name else value for name, value in load_file(path).items()
    }
    save_file(weights, path)

    merge(Request(str(untrained)), tmp_path / "merged", reports)

    assert any("untrained" in line for line in reports.warnings)


def test_what_is_no_longer_tied_is_told_and_written_into_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports()
    base = make_base("tied", tmp_path / "base")
    lora = make_adapter(base, "tied", METHODS["lora-embeddings"], tmp_path / "lora")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))

    merge(Request(str(lora)), tmp_path / "merged", reports)

    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "lm_head.weight" in FolderCheckpoint(tmp_path / "merged").tensors
    assert any("no longer tied" in message for message in reports.warnings)
    assert not list((tmp_path / "scratch").iterdir())
