"""The two routes from an adapter to GGUFs, each as the commands that a person would type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Cost, fill_cache, forget_cached, measure

MERGE, CONVERT, QUANTIZE, FTPACK = "merge", "convert", "quantize", "ftpack gguf"
FTPACK_MERGE = "ftpack merge"


@dataclass(frozen=True)
class Inputs:
    """What both routes are given.

    Attributes:
        base: the base model's folder.
        adapter: the adapter's folder.
        threads: how many quantize.
        llama_cpp: llama.cpp's sources, with its converter.
        is_cold: whether what a step reads is dropped from the page cache before it; otherwise it
            is read into it, so that a step does not pay for what another one pushed out.
        device: where ftpack merges; the usual route merges on the CPU.
    """

    base: Path
    adapter: Path
    threads: int
    llama_cpp: Path
    is_cold: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Run:
    """What a route cost.

    Attributes:
        steps: the cost of each command; that of llama.cpp's quantizer is under `quantize QUANT`.
        intermediate_bytes: files that only the route needs.
    """

    steps: dict[str, Cost]
    intermediate_bytes: int


def run_ftpack(inputs: Inputs, quants: Sequence[str], folder: Path) -> Run:
    """`ftpack gguf`: one command for all quants, whose GGUFs are then `gguf_path`'s."""
    folder.mkdir()
    command: list[str | Path] = [
        Path(sys.executable).parent / "ftpack", "gguf", inputs.adapter, "--base", inputs.base,
        "--device", inputs.device, "--name", "bench", "--out", folder / "bundle",
        "--threads", str(inputs.threads), "--quiet",
    ]  # fmt: skip
    for quant in quants:
        command += ["--quant", quant]
    steps = {FTPACK: _measure(inputs, command, folder, [inputs.base, inputs.adapter])}
    for quant in quants:
        (folder / "bundle" / f"bench-{quant}.gguf").rename(gguf_path(folder, quant))
    return Run(steps, _size(folder / "bundle", "*.gguf"))


def run_ftpack_merge(inputs: Inputs, quants: Sequence[str], folder: Path) -> Run:
    """`ftpack merge`: the merged model in 16 bits, and no GGUF, whatever the quants."""
    folder.mkdir()
    command: list[str | Path] = [
        Path(sys.executable).parent / "ftpack", "merge", inputs.adapter, "--base", inputs.base,
        "--device", inputs.device, "--out", folder / "merged", "--quiet",
    ]  # fmt: skip
    return Run({FTPACK_MERGE: _measure(inputs, command, folder, [inputs.base, inputs.adapter])}, 0)


def run_usual_route(inputs: Inputs, quants: Sequence[str], folder: Path) -> Run:
    """PEFT's merge, `convert_hf_to_gguf.py`, and llama.cpp's quantizer for each quant."""
    folder.mkdir()
    merged, whole = folder / "merged", folder / "bf16.gguf"
    ours: Sequence[str] = [sys.executable, "-m", "bench.usual_step"]
    merge: list[str | Path] = [*ours, "merge", inputs.base, inputs.adapter, merged]
    convert: list[str | Path] = [
        *(sys.executable, inputs.llama_cpp / "convert_hf_to_gguf.py", merged),
        *("--outfile", whole, "--outtype", "bf16"),
    ]
    steps = {
        MERGE: _measure(inputs, merge, folder, [inputs.base, inputs.adapter]),
        CONVERT: _measure(inputs, convert, folder, [merged]),
    }
    for quant in quants:
        step: list[str | Path] = [
            "quantize",
            whole,
            gguf_path(folder, quant),
            quant,
            str(inputs.threads),
        ]
        steps[f"{QUANTIZE} {quant}"] = _measure(inputs, [*ours, *step], folder, [whole])
    return Run(steps, _size(merged, "*.safetensors") + whole.stat().st_size)


def gguf_path(folder: Path, quant: str) -> Path:
    """Where a route that ran in `folder` left the GGUF of a quant."""
    return folder / f"bench-{quant}.gguf"


def _measure(
    inputs: Inputs, command: Sequence[str | Path], folder: Path, read: Sequence[Path]
) -> Cost:
    for path in read:
        forget_cached(path) if inputs.is_cold else fill_cache(path)
    return measure(command, folder / "log")


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
