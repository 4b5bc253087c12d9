"""What the C library does with memory that was freed, where it can be told (glibc)."""

from __future__ import annotations

import contextlib
import ctypes

# Parameters of mallopt as malloc.h has them, the largest threshold it takes, and its own default.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST_THRESHOLD_BYTES, _DEFAULT_MMAP_MAX = 32 << 20, 65536

_is_kept = False


def keep_freed_memory() -> None:
    """Let what one tensor leaves be used for the next: for a process that is ftpack's own.

    By default the library gives large blocks back at once and gets them anew, page by page and
    zeroed: half of all the time in which a base is read.
    """
    global _is_kept
    _is_kept = _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def give_back_large_blocks() -> None:
    """Let blocks of more than 32 MiB go when they are freed, though `keep_freed_memory` was called.

    For work on blocks of hundreds of MiB (a layer's experts): kept in a heap they leave holes that
    smaller tensors break up, so that the next layer's take new memory.
    """
    if _is_kept:
        _set({_M_MMAP_THRESHOLD: _LARGEST_THRESHOLD_BYTES, _M_MMAP_MAX: _DEFAULT_MMAP_MAX})


def give_back_free_pages() -> None:
    """Let go of what is free in the heap now, holes included, where `keep_freed_memory` was called.

    Before work that takes several large blocks, none of which would fit into those holes.
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
