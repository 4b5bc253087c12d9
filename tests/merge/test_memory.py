"""Of an adapter, memory has what belongs to the module that is being merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from packager.merge.peft.peft_merged import PeftMerged
from tests.merge.compared import opened
from tests.merge.methods import METHODS
from tests.merge.tiny import Kind, make_adapter


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lora-experts", "moe"), ("dora", "biased"), ("loha", "biased"), ("lokr", "biased")],
)
def test_the_adapter_stays_in_its_file_until_it_is_merged(
    name: str, kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base(kind), kind, METHODS[name], tmp_path / "adapter")
    merged = opened(tiny_base(kind), adapter)
    assert isinstance(merged, PeftMerged)

    # What is left are the zeros that stand for weights, two to four bytes for each.
    assert merged.facts.held_bytes < 2_000
    assert merged.facts.held_bytes < (adapter / "adapter_model.safetensors").stat().st_size / 4


def test_a_module_that_was_trained_as_a_whole_is_counted(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(
        tiny_base("biased"), "biased", METHODS["lora-save-head"], tmp_path / "adapter"
    )

    merged = opened(tiny_base("biased"), adapter)

    assert isinstance(merged, PeftMerged)
    assert merged.facts.held_bytes >= merged.tensors["lm_head.weight"].size_bytes
