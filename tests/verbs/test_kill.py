"""A rerun after a kill makes the same bytes, and an unfinished file never has a final name."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

QUANTS = ("q4_k_m", "q8_0")


def command(lora: Path, out: Path, quants: tuple[str, ...] = QUANTS) -> list[str]:
    options = [word for quant in quants for word in ("--quant", quant)]
    return [
        sys.executable, "-m", "packager", "gguf", str(lora), *options,
        "--name", "x", "--out", str(out), "-q",
    ]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def grown(path: Path, size_bytes: int) -> bool:
    return path.exists() and path.stat().st_size >= size_bytes


# When to kill: what the output folder contains at that moment.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before anything": lambda out: True,
    "the folder is marked": lambda out: any(out.glob(".ftpack-build.json*")),
    "the header is written": lambda out: grown(out / "x-Q4_K_M.gguf.partial", 1000),
    "half of the data": lambda out: grown(out / "x-Q4_K_M.gguf.partial", 30_000_000),
    "one file is whole": lambda out: (out / "x-Q4_K_M.gguf").exists(),
    "the manifest": lambda out: any(out.glob("manifest.json*")),
}


@pytest.fixture(scope="module")
def finished(adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    subprocess.run(command(adapter("llama"), out), check=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rerun_after_a_kill_makes_the_same_bytes(
    moment: str, finished: Path, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(adapter("llama"), out))
    while process.poll() is None and not MOMENTS[moment](out):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()

    expected = digests(finished)
    if out.exists():
        left = {
            name: digest
            for name, digest in digests(out).items()
            if not name.startswith(".") and not name.endswith(".partial")
        }
        assert left.items() <= expected.items(), "a file with a final name is complete"

    subprocess.run(command(adapter("llama"), out), check=True)
    assert digests(out) == expected


@pytest.mark.slow
def test_another_quant_of_the_same_model_is_added_to_the_bundle(
    finished: Path, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    import json

    out = tmp_path / "out"
    subprocess.run(command(adapter("llama"), out, QUANTS[:1]), check=True)
    made = (out / "x-Q4_K_M.gguf").stat().st_mtime_ns

    result = subprocess.run(
        [*command(adapter("llama"), out), "--json"], check=True, capture_output=True, text=True
    )

    assert json.loads(result.stdout)["reused"] == ["x-Q4_K_M.gguf"]
    assert (out / "x-Q4_K_M.gguf").stat().st_mtime_ns == made
    assert digests(out) == digests(finished)


@pytest.mark.slow
def test_a_damaged_file_is_made_again(
    finished: Path, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with (out / "x-Q8_0.gguf").open("r+b") as file:
        file.seek(20_000_000)
        file.write(b"damage")

    subprocess.run(command(adapter("llama"), out), check=True)

    assert digests(out) == digests(finished)
