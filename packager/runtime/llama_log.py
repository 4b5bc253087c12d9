"""What llama.cpp logs while it works."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_GGML_LOG_LEVEL_ERROR = 4


class Log:
    """A log that grows while llama.cpp works.

    Attributes:
        errors: the messages that llama.cpp calls errors.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._pieces: list[bytes] = []

    @property
    def text(self) -> str:
        """Everything so far; bytes that are not UTF-8 are replaced."""
        return b"".join(self._pieces).decode(errors="replace")

    def add(self, level: int, text: bytes) -> None:
        """Add a message, or a part of one, at one of ggml's log levels."""
        self._pieces.append(text)
        if level == _GGML_LOG_LEVEL_ERROR:
            self.errors.append(text.decode(errors="replace").strip())


@contextmanager
def collect_log() -> Iterator[Log]:
    """Collect llama.cpp's log while the block runs; then llama-cpp-python logs again as before."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    log = Log()

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, _data: object) -> None:
        log.add(level, text)

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield log
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
