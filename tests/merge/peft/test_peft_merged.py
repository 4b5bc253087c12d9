"""What PEFT's way hands on is plain: each tensor in memory of its own, in its own order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.merge.peft.peft_merged import PeftMerged
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
    make = PeftMerged._make

    def transposed(self: PeftMerged, batch: object) -> dict[str, torch.Tensor]:
        """As a conversion of transformers can leave it: a view of what it was a part of."""
        made = make(self, batch)  # type: ignore[arg-type]
        spare = 0 if is_alone else 3
        rows, columns = made[name].shape
        store = torch.zeros(columns, rows + spare, dtype=made[name].dtype)
        store[:, :rows] = made[name].T
        return made | {name: store[:, :rows].T}

    monkeypatch.setattr(PeftMerged, "_make", transposed)

    found = checkpoint.load(name)

    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == found.nbytes
    assert torch.equal(found, wanted)
