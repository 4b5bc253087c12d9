"""The reports of a stage, kept for a test to check."""

from __future__ import annotations

from packager.progress import Silent


class Reports(Silent):
    """Keeps notes and warnings, each in the order in which they were reported."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
