"""Compiles ftpack's kernels for this processor, as the first `ftpack gguf` on a machine does.

`python -m bench.compile_step` prints how many kernels it compiled. It runs as a separate step, so
that no measured time includes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from packager.gguf.quantize.quantizer import load_quantizers
from packager.gguf.toolchain import find_toolchain
from packager.progress import Silent, Task


class _Counting(Silent):
    """A `Progress` that counts the compiled kernels."""

    compiled = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """Adds the size of a task to the count."""
        self.compiled += total
        with super().task(label, total, unit) as task:
            yield task


def main() -> None:
    """Compiles the kernels that need no importance weights, and prints the count."""
    find_toolchain().activate()
    from packager.gguf.quantize.kernels import PLAIN

    counting = _Counting()
    load_quantizers(PLAIN, counting)
    print(counting.compiled)


if __name__ == "__main__":
    main()
