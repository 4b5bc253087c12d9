"""The fastest quantizer of each type that gives ggml's bytes on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from packager.errors import UsageError
from packager.gguf.quantize.ggml import quantize_with_ggml
from packager.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from packager.gguf.quantize.kernels import Kernel

ENVIRONMENT_VARIABLE = "FTPACK_QUANTIZER"
_CHOICES = ("kernels", "ggml")
# These are copied, or rounded to 16 bits, which ggml does at the speed of memory.
_FLOATS = frozenset({"F32", "F16", "BF16"})

# (rows, out): contiguous float32 `[rows, columns]` into contiguous uint8 `[rows, bytes per row]`.
# Called from several threads at once; releases the GIL.
Quantize = Callable[[Any, Any], None]


def load_quantizers(
    type_names: Iterable[str],
    progress: Progress,
    importance: np.ndarray[Any, Any] | None = None,
) -> Mapping[str, Quantize]:
    """A quantizer for each type: one of ftpack's kernels if there is one, else ggml.

    Kernels are compiled at their first use on a machine, which is reported. Each kernel's bytes
    are compared with ggml's on a sample before it is used. A build of ggml that rounds differently
    (compilers may fuse multiplications and additions) quantizes by itself, so that its own bytes
    result.

    Args:
        type_names: GGML's names of the types, such as `Q4_K`.
        progress: gets a note and a task for compiling.
        importance: float32 `[columns]`, the weight of an error in each column; None if all count
            the same. No option of ftpack gives one yet; the kernels for it are tested.

    Raises:
        UsageError: if `FTPACK_QUANTIZER` is neither `kernels` nor `ggml`.
    """
    wanted = sorted(set(type_names))
    kernels = _kernels(wanted, importance is not None, progress)
    return {name: _quantizer(name, kernels.get(name), importance) for name in wanted}


def _quantizer(
    type_name: str, kernel: Kernel | None, importance: np.ndarray[Any, Any] | None
) -> Quantize:
    import numpy as np

    if type_name == "F32":
        return lambda rows, out: np.copyto(out, rows.view(np.uint8))
    if kernel is None:
        return lambda rows, out: quantize_with_ggml(type_name, rows, out, importance)
    weights = np.empty(0, np.float32) if importance is None else importance
    return lambda rows, out: kernel(rows, weights, out)


def _kernels(type_names: list[str], has_importance: bool, progress: Progress) -> dict[str, Kernel]:
    choice = os.environ.get(ENVIRONMENT_VARIABLE) or "kernels"
    if choice not in _CHOICES:
        raise UsageError(
            f"{ENVIRONMENT_VARIABLE} is {choice!r}; it must be {' or '.join(_CHOICES)}.",
            next_step=f"Unset {ENVIRONMENT_VARIABLE}.",
        )
    if choice == "ggml" or _FLOATS.issuperset(type_names):
        return {}
    # Imported here: Numba takes a quarter of a second, and about 100 MiB.
    from packager.gguf.quantize.jit import is_compiled
    from packager.gguf.quantize.kernels import PLAIN, WITH_IMPORTANCE, entry_point

    table = WITH_IMPORTANCE if has_importance else PLAIN
    chosen = {name: table[name] for name in type_names if name in table}
    new = {entry_point(kernel) for kernel in chosen.values()}
    new = {name for name in new if not is_compiled(name)}
    if not new:
        return _equal_to_ggml(chosen, has_importance, progress)
    progress.note("Compiling the quantizers for this processor; this happens only once")
    with progress.task("Compiling", len(new), "kernels") as task:
        equal: dict[str, Kernel] = {}
        for name, kernel in chosen.items():
            equal |= _equal_to_ggml({name: kernel}, has_importance, progress)
            if entry_point(kernel) in new:
                new.remove(entry_point(kernel))
                task.advance(1)
    return equal


def _equal_to_ggml(
    kernels: Mapping[str, Kernel], has_importance: bool, progress: Progress
) -> dict[str, Kernel]:
    """The kernels that give ggml's bytes on a sample of weights."""
    import numpy as np

    rows = np.random.default_rng(0).standard_normal((12, 1024), np.float32)
    # Blocks of zeros, and blocks far smaller than their neighbours.
    rows[::3, :300] = 0
    rows[1::3, 100:400] *= np.float32(1e-4)
    importance = np.abs(rows[0]) + np.float32(0.1) if has_importance else None
    equal = {}
    for name, kernel in kernels.items():
        expected = np.zeros((len(rows), _bytes_per_row(name, rows.shape[1])), np.uint8)
        actual = np.zeros_like(expected)
        quantize_with_ggml(name, rows, expected, importance)
        _quantizer(name, kernel, importance)(rows, actual)
        if np.array_equal(expected, actual):
            equal[name] = kernel
        else:
            progress.note(f"ggml quantizes {name}: its build on this machine rounds differently")
    return equal


def _bytes_per_row(type_name: str, columns: int) -> int:
    from packager.gguf.types import tensor_bytes

    return tensor_bytes(columns, type_name)
