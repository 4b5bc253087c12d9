"""Times each of ftpack's kernels and ggml's quantizer of its type: ns per weight, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.gguf.toolchain import find_toolchain

if TYPE_CHECKING:
    import numpy as np

    from packager.gguf.quantize.kernels import Kernel

WEIGHTS, COLUMNS = 1 << 20, 2048
_ALTERNATIONS = 5


@dataclass(frozen=True)
class KernelTime:
    """The time to quantize one weight to a type.

    Attributes:
        type_name: GGML's name of the type.
        has_importance: whether importance weights were given for the columns.
        kernel_ns: the fastest of several runs; None where ftpack uses ggml for the type.
        ggml_ns: the fastest of as many runs, each directly after a run of the kernel.
        has_same_bytes: whether the kernel wrote the same bytes as ggml.
    """

    type_name: str
    has_importance: bool
    kernel_ns: float | None
    ggml_ns: float
    has_same_bytes: bool = True

    @property
    def ratio(self) -> float | None:
        """Ggml's time divided by the kernel's."""
        return None if self.kernel_ns is None else self.ggml_ns / self.kernel_ns


def time_kernels() -> Iterator[KernelTime]:
    """Times every type that has a kernel, without and with importance weights.

    The weights are normally distributed, 512 rows of 2048. A kernel is compiled before it is timed.
    """
    import numpy as np

    find_toolchain().activate()
    from packager.gguf.quantize.kernels import PLAIN, WITH_IMPORTANCE

    generator = np.random.default_rng(0)
    rows = generator.standard_normal((WEIGHTS // COLUMNS, COLUMNS), np.float32)
    importance = np.abs(generator.standard_normal(COLUMNS, np.float32)) + np.float32(0.1)
    for name in WITH_IMPORTANCE:
        yield _time_type(name, PLAIN.get(name), rows, None)
        yield _time_type(name, WITH_IMPORTANCE[name], rows, importance)


def _time_type(
    name: str,
    kernel: Kernel | None,
    rows: np.ndarray[Any, Any],
    importance: np.ndarray[Any, Any] | None,
) -> KernelTime:
    import numpy as np

    from packager.gguf.quantize.ggml import quantize_with_ggml
    from packager.gguf.types import tensor_bytes

    weights = np.empty(0, np.float32) if importance is None else importance
    ggml_blocks = np.zeros((len(rows), tensor_bytes(COLUMNS, name)), np.uint8)
    kernel_blocks = np.zeros_like(ggml_blocks)
    kernel_s, ggml_s = [], []
    if kernel is not None:
        kernel(rows[:1], weights, kernel_blocks[:1])  # compiles it, or loads it from the cache
    for _ in range(_ALTERNATIONS):
        if kernel is not None:
            kernel_s.append(_elapsed_s(lambda: kernel(rows, weights, kernel_blocks)))
        ggml_s.append(_elapsed_s(lambda: quantize_with_ggml(name, rows, ggml_blocks, importance)))
    return KernelTime(
        name,
        importance is not None,
        min(kernel_s) * 1e9 / rows.size if kernel_s else None,
        min(ggml_s) * 1e9 / rows.size,
        kernel is None or np.array_equal(kernel_blocks, ggml_blocks),
    )


def _elapsed_s(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
