"""Compiling the kernels with Numba, once per machine; the code stays in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import llvmlite.binding as llvm
import numba
from numba.core import config

from packager.files import cache_folder

_P = ParamSpec("_P")
_R = TypeVar("_R")
# Without fast-math no operation is reordered, fused or left out: the bytes depend on it. The error
# model is C's: where ggml divides by zero, Inf or NaN results here too.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A kernel: machine code, kept in the cache folder if it is writable."""
    _use_cache_folder()
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)  # type: ignore[no-any-return]
    except (RuntimeError, OSError):  # numba has no folder that it can write to
        return numba.njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


def inlined(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A small function that becomes part of each kernel that calls it."""
    return numba.njit(inline="always", **_OPTIONS)(function)  # type: ignore[no-any-return]


def is_compiled(name: str) -> bool:
    """Whether this machine's cache folder already holds a kernel."""
    return any(_kernel_folder().rglob(f"*.{name}-*.nbi"))


@cache
def _kernel_folder() -> Path:
    """The folder for these sources, this Numba and this processor; others have their own."""
    parts = [numba.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return cache_folder() / f"kernels-{digest.hexdigest()[:16]}"


def _use_cache_folder() -> None:
    if not os.environ.get("NUMBA_CACHE_DIR"):
        config.CACHE_DIR = str(_kernel_folder())
