"""Several adapters merged one after another: each one's base is what the one before has made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packager.files import read_json
from packager.merge.merged import MergedCheckpoint, changed_config
from packager.merge.route import open_merged
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorFile, TensorInfo

if TYPE_CHECKING:
    import torch


class MergedInTurn:
    """The tensors of `base` with several adapters merged in, the first one first.

    They are what PEFT gives by `from_pretrained` and `merge_and_unload` for each adapter in turn:
    a tensor that two of them change is rounded to the base's element type twice, as it is there.

    In memory is one module of the base at a time, and the adapters as `open_merged` has them.

    Args:
        base: the checkpoint that the first adapter was trained on.
        adapters: their folders and tensor files, in the order of merging; at least one.
        device: where to merge, as torch names it.

    Raises:
        InputRefusedError: what `open_merged` raises, for the first adapter that does not fit.
    """

    def __init__(
        self, base: Checkpoint, adapters: Sequence[tuple[Path, TensorFile]], device: str = "cpu"
    ) -> None:
        self._base = base
        self._merged: list[MergedCheckpoint] = []
        below = base
        for folder, weights in adapters:
            below = open_merged(below, folder, weights, device)
            self._merged.append(below)
            if below.config_changes:
                below = _Redescribed(below)
        self._last = below

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors, and what the adapters add to them."""
        return self._last.tensors

    @property
    def files(self) -> Mapping[str, Path]:
        """The base's files; what its `config.json` no longer says right is in `config_changes`."""
        return self._base.files

    @property
    def config_changes(self) -> Mapping[str, object]:
        """What any of the adapters changes in `config.json`."""
        changes: dict[str, object] = {}
        for merged in self._merged:
            changes |= merged.config_changes
        return changes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be known of each merge."""
        return tuple(dict.fromkeys(line for merged in self._merged for line in merged.warnings))

    @property
    def targets(self) -> int:
        """How many modules are changed, counted for each adapter."""
        return sum(merged.targets for merged in self._merged)

    @property
    def largest_bytes(self) -> int:
        """The largest module of each adapter: all of them are in memory while one is merged."""
        return sum(merged.largest_bytes for merged in self._merged)

    @property
    def held_bytes(self) -> int:
        """What each adapter holds."""
        return sum(merged.held_bytes for merged in self._merged)

    @property
    def is_untrained(self) -> bool:
        """Whether no adapter changes anything."""
        return all(merged.is_untrained for merged in self._merged)

    def is_merged(self, name: str) -> bool:
        """Whether any adapter changes this tensor."""
        return any(merged.is_merged(name) for merged in self._merged)

    def load(self, name: str) -> torch.Tensor:
        """One tensor with every change, on the CPU, in memory of its own."""
        return self._last.load(name)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces; one that is changed is merged as a whole, once."""
        return self._last.blocks(name, rows)

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that every adapter is in the result."""
        for merged in self._merged:
            merged.require_all_used(read)


class _Redescribed:
    """A merged checkpoint whose `config.json` says what merging has made of it.

    The next adapter's layers are put into the model that this file describes: by the base's own, it
    would still be tied, or have the smaller vocabulary.
    """

    def __init__(self, merged: MergedCheckpoint) -> None:
        self._merged = merged
        self._folder = tempfile.TemporaryDirectory(prefix="ftpack-")  # removed with this object
        path = Path(self._folder.name) / "config.json"
        config = changed_config(read_json(merged.files["config.json"]), merged.config_changes)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self.files: Mapping[str, Path] = {**merged.files, "config.json": path}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._merged.tensors

    def load(self, name: str) -> torch.Tensor:
        return self._merged.load(name)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        return self._merged.blocks(name, rows)
