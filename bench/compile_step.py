"""Compiles ftpack's kernels for this processor, as the first `ftpack gguf` on a machine does.

`python -m bench.compile_step` prints how many there were to compile. It is a step of its own, so
that no measured run has it in its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from packager.gguf.quantize.quantizer import load_quantizers
from packager.gguf.toolchain import find_toolchain
from packager.progress import Silent, Task


class _Counting(Silent):
    """A `Progress` that keeps how many kernels were compiled."""

    compiled = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """Counts the work that is announced."""
        self.compiled += total
        with super().task(label, total, unit) as task:
            yield task


def main() -> None:
    """Compiles what is used without importance, and prints the count."""
    find_toolchain().activate()
    from packager.gguf.quantize.kernels import PLAIN

    counting = _Counting()
    load_quantizers(PLAIN, counting)
    print(counting.compiled)


if __name__ == "__main__":
    main()
