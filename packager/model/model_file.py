"""A file beside a model's weights, such as `tokenizer_config.json`: read once, and then known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from packager.files import parse_json, sha256_file

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class ModelFile:
    """A file that describes a model. Its bytes are read at most once, its JSON is parsed once.

    Two are equal if their paths are. Several checkpoints and adapters can share one.

    Attributes:
        path: where it is.
    """

    path: Path

    @cached_property
    def json(self) -> Mapping[str, object]:
        """Its JSON object, kept: for files of kilobytes.

        Raises:
            CorruptFileError: if it cannot be read, or does not hold a JSON object.
        """
        return self._parse()

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of its bytes, in hexadecimal."""
        return sha256_file(self.path)

    def parsed_by(self, parse: Callable[[Path, Mapping[str, object]], Parsed]) -> Parsed:
        """What `parse` makes of its path and its JSON object, which is not kept itself.

        For files of megabytes (`tokenizer.json`); each parser runs once a file.

        Raises:
            CorruptFileError: if it cannot be read, or does not hold a JSON object.
        """
        if parse not in self._results:
            self._results[parse] = parse(self.path, self._parse())
        result: Parsed = self._results[parse]
        return result

    @cached_property
    def _results(self) -> dict[Callable[..., Any], Any]:
        return {}

    def _parse(self) -> Mapping[str, object]:
        content, value = parse_json(self.path)
        # The digest costs no second reading. A cached property takes what its instance has.
        self.__dict__.setdefault("sha256", hashlib.sha256(content).hexdigest())
        return value
