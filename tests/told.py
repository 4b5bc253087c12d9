"""What a stage tells the user, kept for a test to look at."""

from __future__ import annotations

from packager.progress import Silent


class Told(Silent):
    """Keeps notes and warnings apart, each in the order of telling."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
