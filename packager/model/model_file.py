"""A file beside a model's weights, such as `tokenizer_config.json`: read once, then kept."""

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
    """A file that describes a model; nothing is read before it is needed, and nothing twice.

    Two are equal if their paths are equal. Several checkpoints and adapters can share one.

    Attributes:
        path: where it is.
    """

    path: Path

    @cached_property
    def json(self) -> Mapping[str, object]:
        """The JSON object in the file, which is kept: for files of kilobytes.

        Raises:
            CorruptFileError: if it cannot be read, or does not hold a JSON object.
        """
        return self._parse()

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal."""
        return sha256_file(self.path)

    def parsed_by(self, parse: Callable[[Path, Mapping[str, object]], Parsed]) -> Parsed:
        """The result of `parse(path, JSON object)`; it is kept, the JSON object is not.

        For files of megabytes (`tokenizer.json`). Each parser runs once per file.

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
        parsed = parse_json(self.path)
        # So that the digest needs no second read: a cached property uses what its instance has.
        self.__dict__.setdefault("sha256", hashlib.sha256(parsed.content).hexdigest())
        return parsed.value
