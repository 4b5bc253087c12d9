"""What a stage tells about its work while it does it; the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work with a known end."""

    def advance(self, amount: int) -> None:
        """Say that `amount` more of the total is done."""


class Progress(Protocol):
    """Where stages report; none of them prints."""

    def note(self, message: str) -> None:
        """Tell a decision or a fact that the user should see (one line)."""

    def warn(self, message: str) -> None:
        """Tell something that works but that the user should know (one line)."""

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """Open a piece of work of `total` units (`bytes` or a plural noun)."""
        ...


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass


class Silent:
    """A `Progress` that says nothing: the default of the library."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def warn(self, message: str) -> None:
        """Say nothing."""

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """Give a task that draws nothing."""
        yield _SilentTask()
