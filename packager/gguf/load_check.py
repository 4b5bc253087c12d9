"""Whether llama.cpp loads a GGUF: tried in a process of its own, since it may abort.

Without memory for the weights (`no_alloc`), it reads header and vocabulary, and looks for each
tensor that its architecture needs, in its shape. A file with holes in the place of the data does.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REASON = "error loading model:"
# LLAMA_LOAD_MODE_NONE of llama.h: a mapped file would be read as a whole.
_LOAD_MODE_NONE = 0


@contextmanager
def load_tried(path: Path) -> Iterator[Callable[[], str | None]]:
    """Begin to load a GGUF; gives what waits for the reason why llama.cpp refuses it, or None."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(path)],
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )

    def reason() -> str | None:
        said, _ = process.communicate()
        if process.returncode == 0:
            return None
        return said.strip() or f"its loader ends with status {process.returncode}"

    with process:
        try:
            yield reason
        finally:
            process.kill()


def _main(path: str) -> int:
    import llama_cpp

    pieces: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(_level: int, text: bytes, _data: object) -> None:
        pieces.append(text.decode(errors="replace"))

    library: Any = llama_cpp
    library.llama_log_set(collect, ctypes.c_void_p(0))
    parameters = library.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = _LOAD_MODE_NONE
    parameters.n_gpu_layers = 0
    if library.llama_model_load_from_file(path.encode(), parameters):
        return 0
    lines = [line for line in "".join(pieces).splitlines() if _REASON in line]
    sys.stdout.write(lines[-1].partition(_REASON)[2].strip() if lines else "")
    return 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
