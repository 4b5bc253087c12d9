"""The kernel for each type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from packager.gguf.quantize.k_quants import q3_k, q6_k, with_minimum
from packager.gguf.quantize.nonlinear import iq4
from packager.gguf.quantize.small_blocks import q8_0, with_importance

# (rows, importance, out), as described in k_quants.py.
Kernel = Callable[[Any, Any, Any], None]

# ggml quantizes everything else: types without a kernel, and Q4_0, Q4_1, Q5_0 and Q5_1 without
# importance, for which ggml takes 1 to 2 ns a weight, less than the layout in lanes takes.
PLAIN: dict[str, Kernel] = {
    "Q8_0": q8_0,
    "Q2_K": partial(with_minimum, 2),
    "Q3_K": q3_k,
    "Q4_K": partial(with_minimum, 4),
    "Q5_K": partial(with_minimum, 5),
    "Q6_K": q6_k,
    "IQ4_NL": partial(iq4, 32),
    "IQ4_XS": partial(iq4, 256),
}
# Tested, but not used yet: no option of ftpack gives an importance matrix.
WITH_IMPORTANCE: dict[str, Kernel] = {
    **PLAIN,
    "Q4_0": partial(with_importance, 4, False),
    "Q4_1": partial(with_importance, 4, True),
    "Q5_0": partial(with_importance, 5, False),
    "Q5_1": partial(with_importance, 5, True),
}


def entry_point(kernel: Kernel) -> str:
    """The name of the compiled function behind a kernel; several types may share one."""
    function: Any = kernel.func if isinstance(kernel, partial) else kernel
    return str(function.__name__)
