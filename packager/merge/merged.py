"""A base with adapters merged in: a checkpoint over the base, and the facts of the merge."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from packager.errors import AdapterMismatchError, listed
from packager.model.checkpoint import Checkpoint
from packager.model.config import ModelConfig
from packager.model.derived import Derived


@dataclass(frozen=True)
class MergeFacts:
    """What is known of a merge before a weight of the base is read.

    Attributes:
        modules: how many modules the adapters change, counted for each adapter.
        merged_names: the tensors that the adapters change.
        largest_bytes: the size of the largest module that is merged at once, with the memory that
            merging it takes, in the base's own element type.
        held_bytes: what stays in memory from beginning to end, mainly of the adapters.
        warnings: what the user should know of this merge, one line each.
    """

    modules: int = 0
    merged_names: frozenset[str] = frozenset()
    largest_bytes: int = 0
    held_bytes: int = 0
    warnings: tuple[str, ...] = ()


class Merged(Derived):
    """A base with adapters merged in. This class itself merges none: its tensors are the base's.

    Args:
        base: the checkpoint that the adapters were trained on.
        facts: of the merge.
        config: the configuration of the result; None if merging does not change it.
    """

    def __init__(
        self, base: Checkpoint, facts: MergeFacts, config: ModelConfig | None = None
    ) -> None:
        super().__init__(base, config)
        self.facts = facts
        # By what was merged so far (tensors or modules): whether it differs from the base's.
        self._has_changed: dict[str, bool] = {}

    @property
    def is_untrained(self) -> bool:
        """Whether merging changed nothing in what was read so far; False before anything was."""
        return bool(self._has_changed) and not any(self._has_changed.values())

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that every adapter was applied.

        Args:
            read: the tensors that were to be read; None for all.

        Raises:
            AdapterMismatchError: listing what was not applied.
        """


def require_changed(path: Path, unchanged: list[str], modules: int) -> None:
    """Refuse an adapter that leaves modules as they are, though its tensors for them are not zero.

    Args:
        path: the adapter's weights.
        unchanged: the modules that merging did not change, and whose tensors are not zero.
        modules: how many modules the adapter tunes.

    Raises:
        AdapterMismatchError: listing the modules.
    """
    if unchanged:
        raise AdapterMismatchError(
            f"Merging {path} changed nothing in {len(unchanged)} of {modules} modules, though the "
            f"adapter's tensors for them are not zero: {listed(unchanged)}.",
            next_step="Check that this is the trained adapter; PEFT's own merge would give the "
            "base's weights there.",
        )
