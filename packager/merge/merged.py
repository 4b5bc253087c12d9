"""What every merged checkpoint can tell, whichever way it is merged."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from packager.errors import AdapterMismatchError, listed
from packager.model.checkpoint import Checkpoint


@runtime_checkable
class MergedCheckpoint(Checkpoint, Protocol):
    """A base with an adapter merged in."""

    @property
    def targets(self) -> int:
        """How many modules the adapter changes."""
        ...

    @property
    def largest_bytes(self) -> int:
        """The size of the largest that is merged at once, in the base's own element type."""
        ...

    @property
    def held_bytes(self) -> int:
        """What is in memory from beginning to end, of the adapter above all."""
        ...

    @property
    def config_changes(self) -> Mapping[str, object]:
        """What `config.json` must say other than the base's, by key; see `changed_config`."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of this merge, one line each."""
        ...

    @property
    def is_untrained(self) -> bool:
        """Whether what was merged is an adapter that changes nothing."""
        ...

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        ...

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that the adapter is in the result.

        Args:
            read: the tensors that were to be read; None for all.
        """
        ...


def require_changed(path: Path, unchanged: list[str], targets: int) -> None:
    """Refuse an adapter that leaves modules as they are, though it has something for them.

    Args:
        path: the adapter's weights.
        unchanged: the modules that merging did not change, and whose tensors are not zero.
        targets: how many modules the adapter tunes.

    Raises:
        AdapterMismatchError: listing the modules.
    """
    if unchanged:
        raise AdapterMismatchError(
            f"Merging {path} changed nothing in {len(unchanged)} of {targets} modules, though the "
            f"adapter's tensors for them are not zero: {listed(unchanged)}.",
            next_step="Check that this is the trained adapter; PEFT's own merge would give the "
            "base's weights there.",
        )


def changed_config(
    config: Mapping[str, object], changes: Mapping[str, object]
) -> dict[str, object]:
    """A model's configuration with other values, in its part on text where it has one."""
    changed = dict(config)
    text = config.get("text_config")
    for key, value in changes.items():
        if isinstance(text, dict) and key in text:
            text = changed["text_config"] = {**text, key: value}
        if not isinstance(text, dict) or key in config or key not in text:
            changed[key] = value
    return changed
