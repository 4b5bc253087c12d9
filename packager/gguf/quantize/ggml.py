"""ggml's own quantizer, the reference: for every type, on any machine."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import ToolchainError

if TYPE_CHECKING:
    import numpy as np

_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(
    sys.platform, "libggml-base.so"
)


def quantize_with_ggml(
    type_name: str,
    rows: np.ndarray[Any, Any],
    out: np.ndarray[Any, Any],
    importance: np.ndarray[Any, Any] | None = None,
) -> None:
    """Quantize rows by `ggml_quantize_chunk`, as llama.cpp's `llama_model_quantize` does.

    It quantizes each row by itself, and releases the GIL.

    Args:
        type_name: GGML's name of the type, such as `Q4_K`.
        rows: contiguous float32 `[rows, columns]`.
        out: contiguous uint8 `[rows, bytes per row]`, to be filled.
        importance: contiguous float32 `[columns]`, the weight of an error in each column; None
            if all count the same. No option of ftpack gives one yet.
    """
    count, columns = rows.shape
    gguf: Any = importlib.import_module("gguf")
    _library().ggml_quantize_chunk(
        int(gguf.GGMLQuantizationType[type_name]), rows.ctypes.data, out.ctypes.data,
        0, count, columns, None if importance is None else importance.ctypes.data,
    )  # fmt: skip


@cache
def _library() -> Any:
    """llama-cpp-python's ggml library, which has `ggml_quantize_chunk` of ggml.h."""
    # Located without importing the package, which would load all of llama.cpp.
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "lib" / _LIBRARY
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
