"""How a stage reports on its work; the command line draws the reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work with a known end."""

    def advance(self, amount: int) -> None:
        """Report that `amount` more of the total is done."""


class Progress(Protocol):
    """Receives the reports of the stages, which never print."""

    def note(self, message: str) -> None:
        """Report a decision or a fact that the user should see, in one line."""

    def warn(self, message: str) -> None:
        """Report a problem that does not stop the work, in one line."""

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """Start a piece of work of `total` units (`bytes` or a plural noun)."""
        ...


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass


class Silent:
    """A `Progress` that ignores every report: the default of the library."""

    def note(self, message: str) -> None:
        """Ignore the message."""

    def warn(self, message: str) -> None:
        """Ignore the message."""

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """Yield a task that ignores its progress."""
        yield _SilentTask()
