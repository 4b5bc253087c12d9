"""What llama.cpp logs while it works."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Log:
    """A log that grows while llama.cpp works."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    @property
    def text(self) -> str:
        """Everything so far; bytes that are not UTF-8 are replaced."""
        return b"".join(self.pieces).decode(errors="replace")


@contextmanager
def collect_log() -> Iterator[Log]:
    """Collect llama.cpp's log while the block runs; then llama-cpp-python logs again as before."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    log = Log()

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(_level: int, text: bytes, _data: object) -> None:
        log.pieces.append(text)

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield log
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
