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
        """As a conversion of transformers can leave it: a view of what it was a part of."""
        tensors = compute(self, group)
        spare = 0 if is_alone else 3
        rows, columns = tensors[name].shape
        store = torch.zeros(columns, rows + spare, dtype=tensors[name].dtype)
        store[:, :rows] = tensors[name].T
        return tensors | {name: store[:, :rows].T}

    monkeypatch.setattr(PeftMerged, "_compute", transposed)

    found = checkpoint.load(name)

    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == found.nbytes
    assert torch.equal(found, wanted)
