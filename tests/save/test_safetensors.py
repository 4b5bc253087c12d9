"""A checkpoint is saved as one safetensors file, or as shards with an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.save.safetensors import save_safetensors


def test_shards_have_an_index_and_hold_the_same_tensors(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = FolderCheckpoint(small_model("llama"))

    save_safetensors(base, tmp_path, Silent(), shard_bytes=40_000_000)

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    loaded = {}
    for shard in shards:
        loaded.update(load_file(tmp_path / shard))
    assert {n: t.shape for n, t in loaded.items()} == {
        n: torch.Size(i.shape) for n, i in base.tensors.items()
    }
    assert torch.equal(loaded["model.norm.weight"], base.load("model.norm.weight"))
