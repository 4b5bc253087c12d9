"""Whether llama.cpp can load a GGUF, checked in a separate process, since llama.cpp may abort.

Without memory for the weights (`no_alloc`), llama.cpp reads the header and the vocabulary, and
requires each tensor of the architecture, in its shape. A file with holes instead of data is enough.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packager.errors import UnsupportedError
from packager.gguf.toolchain import Toolchain
from packager.override import refuse_unless
from packager.progress import Progress
from packager.runtime.llama_log import collect_log

_REASON = "error loading model:"
# LLAMA_LOAD_MODE_NONE of llama.h: a mapped file would be read as a whole.
_LOAD_MODE_NONE = 0


@contextmanager
def begin_load_check(path: Path) -> Iterator[Callable[[], str | None]]:
    """Begin to load a GGUF; gives a function that waits for llama.cpp's reason to refuse it.

    The function returns None if llama.cpp loads the file. The process ends with the block.
    """
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
        output, _ = process.communicate()
        if process.returncode == 0:
            return None
        return output.strip() or f"its loader ended with status {process.returncode}"

    with process:
        try:
            yield reason
        finally:
            process.kill()


def require_loadable(
    reason: str | None, toolchain: Toolchain, force: bool, progress: Progress
) -> None:
    """Refuse a model that llama.cpp cannot load. Most often, tensors are missing.

    Args:
        reason: llama.cpp's reason, as `begin_load_check` gives it; None if it loads the model.
        toolchain: names the version in the message.
        force: warn instead of refusing.
        progress: gets that warning.

    Raises:
        UnsupportedError: with the reason, unless `force` is true.
    """
    if reason is None:
        return
    error = UnsupportedError(
        f"llama.cpp (llama-cpp-python {toolchain.version}) cannot load this model: {reason}.",
        next_step="Compare config.json with the weights, or download or save the model again. "
        "With --force the files are written anyway.",
    )
    refuse_unless(force, error, progress)


def _main(path: str) -> int:
    import llama_cpp

    library: Any = llama_cpp
    parameters = library.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = _LOAD_MODE_NONE
    parameters.n_gpu_layers = 0
    with collect_log() as log:
        if library.llama_model_load_from_file(path.encode(), parameters):
            return 0
    lines = [line for line in log.text.splitlines() if _REASON in line]
    sys.stdout.write(lines[-1].partition(_REASON)[2].strip() if lines else "")
    return 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
