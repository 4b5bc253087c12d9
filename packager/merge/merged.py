"""What every merged checkpoint can tell, whichever way it is merged."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from packager.checkpoint import Checkpoint


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

    def require_all_used(self) -> None:
        """Check, after everything was loaded, that the adapter is in the result."""
        ...
