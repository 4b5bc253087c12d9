"""The two routes from an adapter to GGUFs, each as the commands that a user would type."""

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
    """The inputs of both routes.

    Attributes:
        base: the base model's folder.
        adapter: the adapter's folder.
        threads: the number of quantizing threads.
        llama_cpp: llama.cpp's sources, with its converter.
        is_cold: whether to drop each step's inputs from the page cache first; otherwise they are
            read into it, so that a step does not pay for what another step evicted.
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
    """The cost of a route.

    Attributes:
        steps: the cost of each command by name; llama.cpp's quantizer is `quantize QUANT`.
        intermediate_bytes: the size of the files that are not part of the result.
    """

    steps: dict[str, Cost]
    intermediate_bytes: int


def run_ftpack(inputs: Inputs, quants: Sequence[str], folder: Path) -> Run:
    """Runs one `ftpack gguf` for all quants; moves the GGUFs to `gguf_path`."""
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
    """Runs `ftpack merge`, which writes the merged model in 16 bits; ignores the quants."""
    folder.mkdir()
    command: list[str | Path] = [
        Path(sys.executable).parent / "ftpack", "merge", inputs.adapter, "--base", inputs.base,
        "--device", inputs.device, "--out", folder / "merged", "--quiet",
    ]  # fmt: skip
    return Run({FTPACK_MERGE: _measure(inputs, command, folder, [inputs.base, inputs.adapter])}, 0)


def run_usual_route(inputs: Inputs, quants: Sequence[str], folder: Path) -> Run:
    """Runs PEFT's merge, `convert_hf_to_gguf.py`, and llama.cpp's quantizer for each quant."""
    folder.mkdir()
    merged, unquantized = folder / "merged", folder / "bf16.gguf"
    ours: Sequence[str] = [sys.executable, "-m", "bench.usual_step"]
    merge: list[str | Path] = [*ours, "merge", inputs.base, inputs.adapter, merged]
    convert: list[str | Path] = [
        *(sys.executable, inputs.llama_cpp / "convert_hf_to_gguf.py", merged),
        *("--outfile", unquantized, "--outtype", "bf16"),
    ]
    steps = {
        MERGE: _measure(inputs, merge, folder, [inputs.base, inputs.adapter]),
        CONVERT: _measure(inputs, convert, folder, [merged]),
    }
    for quant in quants:
        step: list[str | Path] = [
            "quantize",
            unquantized,
            gguf_path(folder, quant),
            quant,
            str(inputs.threads),
        ]
        steps[f"{QUANTIZE} {quant}"] = _measure(inputs, [*ours, *step], folder, [unquantized])
    return Run(steps, _size(merged, "*.safetensors") + unquantized.stat().st_size)


def gguf_path(folder: Path, quant: str) -> Path:
    """Returns the path of a quant's GGUF after a route has run in `folder`."""
    return folder / f"bench-{quant}.gguf"


def _measure(
    inputs: Inputs, command: Sequence[str | Path], folder: Path, read: Sequence[Path]
) -> Cost:
    for path in read:
        forget_cached(path) if inputs.is_cold else fill_cache(path)
    return measure(command, folder / "log")


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
