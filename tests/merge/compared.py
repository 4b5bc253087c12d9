"""A merged checkpoint, compared with the one that PEFT and transformers save."""

from __future__ import annotations

from pathlib import Path

import torch

from packager.merge.adapters import merge
from packager.merge.merge_options import Combination, MergeOptions
from packager.merge.merged import Merged
from packager.merge.route import merge_one
from packager.model.checkpoint import Checkpoint, FolderCheckpoint
from packager.source.adapter_folder import open_adapter


class Unreadable(FolderCheckpoint):
    """A base whose weights must not be read."""

    def load(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def opened(folder: Path, adapter: Path, readable: bool = True, device: str = "cpu") -> Merged:
    """A base with an adapter merged in, both from their folders."""
    checkpoint = FolderCheckpoint(folder) if readable else Unreadable(folder)
    return merge_one(checkpoint, open_adapter(adapter), device)


def merge_folders(
    base: Path, *folders: Path, scratch: Path | None = None, combination: Combination | None = None
) -> Merged:
    """A base with the adapters in some folders merged in."""
    options = MergeOptions(device="cpu", combination=combination)
    adapters = [open_adapter(folder) for folder in folders]
    return merge(FolderCheckpoint(base), adapters, options, scratch or base / "not written to")


def differences(merged: Checkpoint, wanted: FolderCheckpoint) -> list[str]:
    """The tensors whose name, dtype, shape or bytes differ."""
    wrong = sorted(set(merged.tensors) ^ set(wanted.tensors))
    for name in set(merged.tensors) & set(wanted.tensors):
        ours, theirs = merged.load(name), wanted.load(name)
        info = merged.tensors[name]
        if (ours.dtype, ours.shape) != (info.torch_dtype, info.shape):
            wrong.append(f"{name} does not have the dtype or shape that was announced")
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            wrong.append(f"{name} has another dtype or shape")
        elif not torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):
            wrong.append(f"{name} has other values")
    return wrong
