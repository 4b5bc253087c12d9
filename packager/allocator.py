"""Memory: what the C library does with freed memory (glibc), and Python's garbage collector."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

# Parameters of mallopt from malloc.h, the largest threshold that it accepts, and glibc's default.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST_THRESHOLD_BYTES, _DEFAULT_MMAP_MAX = 32 << 20, 65536

_is_kept = False


def keep_freed_memory() -> None:
    """Reuse the memory of one tensor for the next; only for a process of ftpack's own.

    By default, the library returns large blocks to the system at once and gets new ones, page by
    page and zeroed. That takes half of the time in which a base is read.
    """
    global _is_kept
    _is_kept = _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def give_back_large_blocks() -> None:
    """Return freed blocks of more than 32 MiB to the system, despite `keep_freed_memory`.

    For work on blocks of hundreds of MiB (a layer's experts): in a heap they would leave holes that
    smaller tensors break up, so that the blocks of the next layer would need new memory.
    """
    if _is_kept:
        _set({_M_MMAP_THRESHOLD: _LARGEST_THRESHOLD_BYTES, _M_MMAP_MAX: _DEFAULT_MMAP_MAX})


def give_back_free_pages() -> None:
    """Return the free parts of the heap to the system, holes too, after `keep_freed_memory`.

    For use before work with several large blocks, none of which would fit into those holes.
    """
    if _is_kept:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set(parameters: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    for parameter, value in parameters.items():
        mallopt(parameter, value)
    return True


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn Python's garbage collector off while the block runs.

    A vocabulary is a million small objects, and the libraries have as many; to search them again
    and again takes longer than to make them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
