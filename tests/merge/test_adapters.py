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
def test_several_adapters_give_what_peft_gives_by_merging_one_after_another(
    names: tuple[str, ...], kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    if kind == "conv1d":
        names = tuple("lora-bias-all" if name == "loha" else name for name in names)
    base = usual = tiny_base(kind)
    adapters = []
    for number, name in enumerate(names):
        adapters.append(make_adapter(base, kind, METHODS[name], tmp_path / f"adapter-{number}"))
        usual = merge_with_peft(usual, kind, adapters[-1], tmp_path / f"peft-{number}")

    merged = merge_folders(base, *adapters)

    assert differences(merged, FolderCheckpoint(usual)) == []
    merged.require_all_used()
    assert not merged.is_untrained


def test_each_merge_rounds_so_the_order_matters(two: tuple[Path, Path, Path]) -> None:
    base, first, second = two
    forth = merge_folders(base, first, second)
    back = merge_folders(base, second, first)

    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(forth.load(name), back.load(name))


def test_embeddings_that_the_first_adapter_unties_stay_untied_for_the_second(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """As two runs of `ftpack merge` give it: PEFT's own merge would change both tied sides."""
    base = tiny_base("tied")
    first = make_adapter(base, "tied", METHODS["lora-embeddings"], tmp_path / "first")
    step = opened(base, first)
    (tmp_path / "step").mkdir()
    save_safetensors(step, tmp_path / "step", Silent())
    (tmp_path / "step" / "config.json").write_text(json.dumps(step.config.values))
    second = make_adapter(tmp_path / "step", "tied", METHODS["lora-head"], tmp_path / "second")
    wanted = merge_with_peft(tmp_path / "step", "tied", second, tmp_path / "peft")

    merged = merge_folders(base, first, second)

    assert differences(merged, FolderCheckpoint(wanted)) == []
    assert merged.config.values["tie_word_embeddings"] is False


def test_without_an_adapter_the_result_is_the_base(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = FolderCheckpoint(tiny_base("biased"))

    merged = merge(base, [], MergeOptions(device="cpu"), tmp_path)

    assert differences(merged, base) == []
    assert merged.facts == MergeFacts()
    assert merged.config is base.config
    assert merged.files is base.files
    merged.require_all_used()
    assert not merged.is_untrained
    assert not list(tmp_path.iterdir())
