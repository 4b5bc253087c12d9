"""What PEFT's layers give is plain: each tensor in memory of its own, in its own order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.merge.peft.peft_merged import PeftMerged
from packager.merge.peft.write_groups import WriteGroup
from tests.merge.compared import opened
from tests.merge.methods import METHODS
from tests.merge.tiny import Kind, make_adapter


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "in a larger one"])
def test_a_transposed_view_comes_back_in_its_own_order(
    is_alone: bool,
    tiny_base: Callable[[Kind], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["dora"], tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    checkpoint = opened(tiny_base("tied"), adapter)
    wanted = checkpoint.load(name)
    compute = PeftMerged._compute

    def transposed(self: PeftMerged, group: WriteGroup) -> dict[str, torch.Tensor]:
        """As a conversion of transformers can leave it: a view of a larger tensor."""
        tensors = compute(self, group)
        spare = 0 if is_alone else 3
        rows, columns = tensors[name].shape
        store = torch.zeros(columns, rows + spare, dtype=tensors[name].dtype)
        store[:, :rows] = tensors[name].T
        return tensors | {name: store[:, :rows].T}

    monkeypatch.setattr(PeftMerged, "_compute", transposed)

    tensor = checkpoint.load(name)

    assert tensor.is_contiguous()
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert torch.equal(tensor, wanted)


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

    # Only the zeros that stand for weights are left, two to four bytes for each weight.
    assert merged.facts.held_bytes < 2_000
    assert merged.facts.held_bytes < (adapter / "adapter_model.safetensors").stat().st_size / 4


def test_a_fully_trained_module_counts_as_held(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(
        tiny_base("biased"), "biased", METHODS["lora-save-head"], tmp_path / "adapter"
    )

    merged = opened(tiny_base("biased"), adapter)

    assert isinstance(merged, PeftMerged)
    assert merged.facts.held_bytes >= merged.tensors["lm_head.weight"].size_bytes
