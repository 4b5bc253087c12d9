"""Which code quantizes: a kernel whose bytes were compared with ggml's, or ggml itself."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packager.errors import UsageError
from packager.gguf.quantize import kernels
from packager.gguf.quantize.ggml import quantize_with_ggml
from packager.gguf.quantize.quantizer import ENVIRONMENT_VARIABLE, load_quantizers
from packager.gguf.toolchain import find_toolchain
from packager.gguf.types import tensor_bytes
from packager.progress import Silent

ROWS = np.random.default_rng(1).standard_normal((5, 512), np.float32)


class Notes(Silent):
    """Keeps the notes, and a line for each task."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Any:
        self.notes.append(f"{label}: {total} {unit}")
        with super().task(label, total, unit) as task:
            yield task


@pytest.fixture(autouse=True)
def _toolchain() -> None:
    find_toolchain().activate()


def bytes_of(quantize: Any, type_name: str) -> np.ndarray[Any, Any]:
    out = np.zeros((len(ROWS), tensor_bytes(ROWS.shape[1], type_name)), np.uint8)
    quantize(ROWS, out)
    return out


def bytes_of_ggml(type_name: str) -> np.ndarray[Any, Any]:
    return bytes_of(lambda rows, out: quantize_with_ggml(type_name, rows, out), type_name)


def wrong_kernel(rows: Any, importance: Any, out: Any) -> None:
    out[:] = 1


@pytest.mark.parametrize("type_name", ["Q4_0", "F16", "BF16", "F32", "TQ2_0", "Q4_K", "Q8_0"])
def test_every_type_gets_ggmls_bytes(type_name: str) -> None:
    quantizers = load_quantizers([type_name], Silent())

    assert np.array_equal(bytes_of(quantizers[type_name], type_name), bytes_of_ggml(type_name))


def test_a_kernel_with_other_bytes_than_ggml_is_reported_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(kernels.PLAIN, "Q8_0", wrong_kernel)
    progress = Notes()

    quantizers = load_quantizers(["Q8_0"], progress)

    assert np.array_equal(bytes_of(quantizers["Q8_0"], "Q8_0"), bytes_of_ggml("Q8_0"))
    assert any("Q8_0" in note for note in progress.notes)


def test_ggml_can_be_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_calls = []
    monkeypatch.setitem(kernels.PLAIN, "Q8_0", lambda *_: kernel_calls.append(1))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "ggml")

    quantizers = load_quantizers(["Q8_0"], Silent())

    assert np.array_equal(bytes_of(quantizers["Q8_0"], "Q8_0"), bytes_of_ggml("Q8_0"))
    assert not kernel_calls


def test_another_value_is_refused_naming_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "fast")

    with pytest.raises(UsageError, match=r"FTPACK_QUANTIZER.*'fast'.*kernels.*ggml"):
        load_quantizers(["Q8_0"], Silent())


def in_a_new_process(cache: Path) -> list[str]:
    """The notes of a process with that cache folder, which also compares the bytes with ggml's."""
    script = (
        "from tests.gguf.quantize.test_quantizer import *\n"
        "find_toolchain().activate()\n"
        "progress = Notes()\n"
        "quantize = load_quantizers(['Q8_0'], progress)['Q8_0']\n"
        "assert np.array_equal(bytes_of(quantize, 'Q8_0'), bytes_of_ggml('Q8_0'))\n"
        "print('\\n'.join(progress.notes))"
    )
    environment = os.environ | {
        "FTPACK_CACHE": str(cache),
        "FTPACK_LLAMA_CPP": str(find_toolchain().folder),
    }
    environment.pop("NUMBA_CACHE_DIR", None)
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout.split("\n")[:-1]


def test_only_the_first_use_compiles_and_says_so(tmp_path: Path) -> None:
    first = in_a_new_process(tmp_path)

    assert first[0].startswith("Compiling the quantizers")
    assert first[1] == "Compiling: 1 kernels"
    assert not [line for line in in_a_new_process(tmp_path) if line]


def test_a_cache_folder_that_is_not_writable_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    in_a_new_process(tmp_path / "file" / "cache")
