"""A run reads each small file once, and leaves the temporary folder as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

# Counts which of these files our own code opens: the innermost frame that is not Python's standard
# library has to be in `packager/`. What transformers and llama.cpp's converter open is theirs.
_COUNTING = """
import collections, json, os, sys, sysconfig

names = {"config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"}
library = sysconfig.get_paths()["stdlib"] + os.sep
opened = collections.Counter()

def is_library(path):
    return path.startswith("<") or path.startswith(library) and "site-packages" not in path

def count(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = os.fsdecode(arguments[0])
    if os.path.basename(path) not in names:
        return
    frame = sys._getframe(1)
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is not None and os.sep + "packager" + os.sep in frame.f_code.co_filename:
        opened[os.path.realpath(path)] += 1

sys.addaudithook(count)
from packager.cli.main import main
try:
    main()
finally:
    with open(os.environ["COUNTS"], "w") as file:
        json.dump(opened, file)
"""


def opened_by(*arguments: object, folder: Path) -> Mapping[Path, int]:
    """How often a run opens each of the four files, by their paths with links followed."""
    counts = folder / "counts.json"
    subprocess.run(
        [sys.executable, "-c", _COUNTING, *map(str, arguments), "-q"],
        env=os.environ | {"COUNTS": str(counts)},
        check=True,
        capture_output=True,
        cwd=folder,
    )
    return {Path(name): count for name, count in json.loads(counts.read_text()).items()}


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["plain", "by PEFT"])
def test_a_run_opens_each_file_of_its_source_once(
    options: dict[str, object], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    lora = adapter("llama", **options).resolve()
    base = Path(json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"])

    opened = opened_by("gguf", lora, "--quant", "q8_0", "--name", "x", folder=tmp_path)

    tokenizers = {folder / name for folder in (lora, base.resolve())
                  for name in ("tokenizer.json", "tokenizer_config.json")}  # fmt: skip
    expected = {lora / "adapter_config.json", base.resolve() / "config.json", *tokenizers}
    assert opened == dict.fromkeys(expected, 1)


def test_a_run_on_a_full_model_opens_each_of_its_files_once(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = small_model("qwen3").resolve()

    opened = opened_by("gguf", model, "--quant", "q8_0", "--name", "x", folder=tmp_path)

    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    assert opened == {model / name: 1 for name in names}


def run_in(temporary: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "packager", *map(str, arguments)],
        env=os.environ | {"TMPDIR": str(temporary)},
        cwd=temporary.parent,
        capture_output=True,
        text=True,
        check=False,
    )


RUNS: dict[str, tuple[str, ...]] = {
    "gguf": ("gguf", "LORA", "--quant", "q8_0", "--name", "x"),
    "gguf, combined": (
        "gguf", "LORA", "--adapter", "OTHER", "--combine", "linear", "--quant", "q8_0",
    ),
    "gguf, by PEFT": ("gguf", "DORA", "--quant", "q8_0", "--name", "x"),
    "merge": ("merge", "LORA", "--out", "merged"),
    "merge, in turn": ("merge", "LORA", "--adapter", "OTHER", "--out", "merged"),
    "prompt": ("prompt", "LORA"),
    "modelfile": ("modelfile", "LORA"),
    "inspect": ("inspect", "LORA"),
    "dry run": ("gguf", "LORA", "--dry-run"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_the_temporary_folder_as_it_was(
    name: str, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folders = {
        "LORA": adapter("llama"),
        "OTHER": adapter("llama", seed=2),
        "DORA": adapter("llama", use_dora=True),
    }
    arguments = [folders.get(word, word) for word in RUNS[name]]

    run = run_in(tmp_path / "temporary", *arguments)

    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [("--quant", "iq1_s"), ("--adapter", "nowhere"), ("--combine", "linear", "--adapter", "BASE")],
    ids=["needs an imatrix", "no such adapter", "not an adapter"],
)
def test_a_refused_run_leaves_the_temporary_folder_as_it_was(
    options: tuple[str, ...],
    adapter: Callable[..., Path],
    small_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = str(small_model("llama"))
    arguments = [base if word == "BASE" else word for word in options]

    run = run_in(tmp_path / "temporary", "gguf", adapter("llama"), *arguments)

    assert run.returncode == 3, run.stderr
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_an_interrupted_run_leaves_the_temporary_folder_as_it_was(
    number: signal.Signals, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "packager", "gguf", str(adapter("llama")), "--adapter",
            str(adapter("llama", seed=2)), "--combine", "cat", "--quant", "q4_k_m",
        ],
        env=os.environ | {"TMPDIR": str(temporary)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(temporary.glob("*/combined*")):
        time.sleep(0.005)

    process.send_signal(number)

    assert process.wait(timeout=60) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert list(temporary.iterdir()) == []
