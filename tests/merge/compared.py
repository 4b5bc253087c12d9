"""A merged checkpoint, held against the one that PEFT and transformers have saved."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from packager.merge.merged import MergedCheckpoint, changed_config
from packager.merge.route import open_merged
from packager.model.checkpoint import FolderCheckpoint
from packager.source.adapter_folder import open_adapter


class Unreadable(FolderCheckpoint):
    """A base of which no weight may be read."""

    def load(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def opened(
    folder: Path, adapter: Path, readable: bool = True, device: str = "cpu"
) -> MergedCheckpoint:
    checkpoint = FolderCheckpoint(folder) if readable else Unreadable(folder)
    return open_merged(checkpoint, adapter, open_adapter(adapter).weights, device)


def config_of(merged: MergedCheckpoint) -> dict[str, object]:
    """What the configuration of the merged model says."""
    base = json.loads(merged.files["config.json"].read_text(encoding="utf-8"))
    return changed_config(base, merged.config_changes)


def differences(found: MergedCheckpoint, wanted: FolderCheckpoint) -> list[str]:
    """Names, dtypes, shapes and bytes that are not the same."""
    wrong = sorted(set(found.tensors) ^ set(wanted.tensors))
    for name in set(found.tensors) & set(wanted.tensors):
        ours, theirs = found.load(name), wanted.load(name)
        info = found.tensors[name]
        if (ours.dtype, ours.shape) != (info.torch_dtype, info.shape):
            wrong.append(f"{name} is not what was promised")
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            wrong.append(f"{name} has another dtype or shape")
        elif not torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):
            wrong.append(f"{name} has other values")
    return wrong
