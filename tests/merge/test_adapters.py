"""Several adapters, merged one after another, give what PEFT gives; no adapter gives the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.merge.adapters import merge
from packager.merge.merge_options import MergeOptions
from packager.merge.merged import MergeFacts
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.save.safetensors import save_safetensors
from tests.merge.compared import differences, merge_folders, opened
from tests.merge.methods import METHODS
from tests.merge.tiny import Kind, make_adapter, merge_with_peft


@pytest.mark.parametrize("kind", ["biased", "conv1d", "moe"])
@pytest.mark.parametrize("names", [("lora", "rslora"), ("lora", "loha"), ("dora", "pissa")])
def test_in_turn_is_what_peft_makes_by_merging_one_after_another(
    names: tuple[str, ...], kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    if kind == "conv1d":
        names = tuple("lora-bias-all" if name == "loha" else name for name in names)
    base = usual = tiny_base(kind)
    adapters = []
    for number, name in enumerate(names):
        adapters.append(make_adapter(base, kind, METHODS[name], tmp_path / f"adapter-{number}"))
        usual = merge_with_peft(usual, kind, adapters[-1], tmp_path / f"peft-{number}")

    found = merge_folders(base, *adapters)

    assert differences(found, FolderCheckpoint(usual)) == []
    found.require_all_used()
    assert not found.is_untrained


def test_in_turn_rounds_as_often_as_peft_does(two: tuple[Path, Path, Path]) -> None:
    base, first, second = two
    forth = merge_folders(base, first, second)
    back = merge_folders(base, second, first)

    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(forth.load(name), back.load(name))


def test_what_the_first_unties_stays_untied_for_the_second(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """As two runs of `ftpack merge` give it: PEFT's own would change both sides of the tie."""
    base = tiny_base("tied")
    first = make_adapter(base, "tied", METHODS["lora-embeddings"], tmp_path / "first")
    step = opened(base, first)
    (tmp_path / "step").mkdir()
    save_safetensors(step, tmp_path / "step", Silent())
    (tmp_path / "step" / "config.json").write_text(json.dumps(step.config.values))
    second = make_adapter(tmp_path / "step", "tied", METHODS["lora-head"], tmp_path / "second")
    wanted = merge_with_peft(tmp_path / "step", "tied", second, tmp_path / "peft")

    found = merge_folders(base, first, second)

    assert differences(found, FolderCheckpoint(wanted)) == []
    assert found.config.values["tie_word_embeddings"] is False


def test_without_an_adapter_the_result_is_the_base(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = FolderCheckpoint(tiny_base("biased"))

    found = merge(base, [], MergeOptions(device="cpu"), tmp_path)

    assert differences(found, base) == []
    assert found.facts == MergeFacts()
    assert found.config is base.config
    assert found.files is base.files
    found.require_all_used()
    assert not found.is_untrained
    assert not list(tmp_path.iterdir())
