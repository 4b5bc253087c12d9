"""`ftpack merge` writes a folder that transformers loads, and overwrites one only with --force."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import NonFiniteError, OutputExistsError
from packager.model.checkpoint import FolderCheckpoint
from packager.save.safetensors import save_safetensors
from packager.verbs.merge import merge
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, make_base, merge_with_peft
from tests.reports import Reports
from tests.requests import request_for


def test_transformers_loads_the_merged_model_and_it_answers_as_with_the_adapter(
    adapter: Callable[..., Path], small_model: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, lora = small_model("llama"), adapter("llama")

    merge(request_for(lora), tmp_path / "merged")

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
def test_the_folder_that_is_read_is_never_overwritten(
    which: str, adapter: Callable[..., Path], small_model: Callable[..., Path]
) -> None:
    folder = small_model("llama") if which == "base" else adapter("llama")
    before = sorted(path.name for path in folder.iterdir())

    with pytest.raises(OutputExistsError, match=re.escape(str(folder))):
        merge(request_for(adapter("llama"), force=True), folder)

    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_model_is_overwritten_only_with_force_and_then_leaves_no_shard_behind(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    with monkeypatch.context() as patch:
        patch.setattr(save_safetensors, "__defaults__", (40_000_000,))
        merge(request_for(adapter("llama")), out)
    assert (out / "model.safetensors.index.json").is_file()
    with pytest.raises(OutputExistsError, match=r"config\.json"):
        merge(request_for(adapter("llama")), out)

    merge(request_for(adapter("llama"), force=True), out)

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
        merge(request_for(diverged), tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()

    merge(request_for(adapter("llama")), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(NonFiniteError):
        merge(request_for(diverged, force=True), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_untrained_adapter_causes_a_warning(
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

    merge(request_for(untrained), tmp_path / "merged", reports)

    assert any("untrained" in line for line in reports.warnings)


def test_an_untied_head_is_reported_and_written_into_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports()
    base = make_base("tied", tmp_path / "base")
    lora = make_adapter(base, "tied", METHODS["lora-embeddings"], tmp_path / "lora")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))

    merge(request_for(lora), tmp_path / "merged", reports)

    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "lm_head.weight" in FolderCheckpoint(tmp_path / "merged").tensors
    assert any("no longer tied" in message for message in reports.warnings)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, and a LoRA and a LoHa for it."""
    base = make_base("biased", tmp_path / "base")
    first = make_adapter(base, "biased", METHODS["lora"], tmp_path / "first")
    second = make_adapter(base, "biased", METHODS["loha"], tmp_path / "second")
    return base, first, second


def test_adapters_are_merged_in_their_order(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = two
    step = merge_with_peft(base, "biased", first, tmp_path / "step")
    expected = FolderCheckpoint(merge_with_peft(step, "biased", second, tmp_path / "peft"))

    merge(request_for(first, adapters=(second,)), tmp_path / "merged")

    merged = FolderCheckpoint(tmp_path / "merged")
    assert merged.tensors.keys() == expected.tensors.keys()
    assert all(merged.load(name).equal(expected.load(name)) for name in expected.tensors)


def test_adapters_are_merged_into_a_full_model(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    expected = FolderCheckpoint(merge_with_peft(base, "biased", first, tmp_path / "peft"))

    merge(request_for(base, adapters=(first,)), tmp_path / "merged")

    merged = FolderCheckpoint(tmp_path / "merged")
    assert all(merged.load(name).equal(expected.load(name)) for name in expected.tensors)
