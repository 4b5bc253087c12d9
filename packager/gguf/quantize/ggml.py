"""Quantizing rows of fp32 weights with ggml's own code, in threads."""

from __future__ import annotations

import ctypes
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import ToolchainError

if TYPE_CHECKING:
    import numpy as np

# One thread's share: large enough that starting it costs nothing, small enough to balance.
_CHUNK_ELEMENTS = 1 << 18
_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(
    sys.platform, "libggml-base.so"
)


@cache
def _ggml() -> Any:
    """The library that llama-cpp-python brings; `ggml_quantize_chunk` of ggml.h is in it."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    path = Path(llama_cpp.__file__).parent / "lib" / _LIBRARY
    try:
        library = ctypes.CDLL(str(path))
        function = library.ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise ToolchainError(
            f"{path} cannot be used for quantizing: {error}",
            next_step="Reinstall llama-cpp-python (pip install --force-reinstall).",
        ) from error
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library


class Quantizer:
    """Threads that turn fp32 rows into the blocks of a GGML type.

    The bytes are those of llama.cpp's `llama_model_quantize`: both call `ggml_quantize_chunk`,
    which treats every row alone.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
        self._ggml = _ggml()
        self._gguf: Any = importlib.import_module("gguf")

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def quantize(self, rows: np.ndarray[Any, Any], type_name: str) -> np.ndarray[Any, Any]:
        """Contiguous fp32 `[rows, columns]` as a GGML type: uint8 `[rows, bytes per row]`."""
        import numpy as np

        count, columns = rows.shape
        if type_name == "F32":
            return rows.view(np.uint8)
        ggml_type = self._gguf.GGMLQuantizationType[type_name]
        block, block_bytes = self._gguf.GGML_QUANT_SIZES[ggml_type]
        out = np.empty((count, columns // block * block_bytes), np.uint8)
        share = max(1, _CHUNK_ELEMENTS // columns)

        def run(start: int) -> None:
            # Releases the GIL. `start` counts elements of the source, and places the result too.
            self._ggml.ggml_quantize_chunk(
                int(ggml_type), rows.ctypes.data, out.ctypes.data,
                start * columns, min(share, count - start), columns, None,
            )  # fmt: skip

        list(self._pool.map(run, range(0, count, share)))
        return out
