"""A version of Ollama, and what servers of it can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packager.errors import UsageError

_NUMBERS = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class OllamaVersion:
    """A version of Ollama.

    Attributes:
        text: as the server or the user writes it, such as `0.32.15-rc1`.
        numbers: its first two numbers.
    """

    text: str
    numbers: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> OllamaVersion:
        """The version that a text names.

        Raises:
            UsageError: if it does not contain two numbers with a dot between them.
        """
        match = _NUMBERS.search(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not an Ollama version.",
                next_step=f"Write it as `ollama --version` shows it, such as {NEWEST_KNOWN}.",
            )
        return cls(text, (int(match[1]), int(match[2])))

    @classmethod
    def of_server(cls, text: str) -> OllamaVersion:
        """The version that a server reports. Without numbers it counts as new, as 0.0.0 does."""
        match = _NUMBERS.search(text)
        return cls(text, (int(match[1]), int(match[2])) if match else (0, 0))

    @property
    def can_be_native(self) -> bool:
        """Whether such a server renders with a GGUF's own chat template if it has no TEMPLATE."""
        # A build from source calls itself 0.0.0 and is assumed to be new.
        return self.numbers >= _FIRST_NATIVE or not any(self.numbers)

    def __str__(self) -> str:
        """The text that it was parsed from."""
        return self.text


_FIRST_NATIVE = (0, 30)
NEWEST_KNOWN = OllamaVersion("0.32.15", (0, 32))
