"""The two routes from a LoRA to GGUFs, each as the commands that a person would type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Cost, measure


@dataclass(frozen=True)
class Inputs:
    """What both routes are given."""

    base: Path
    adapter: Path
    quants: tuple[str, ...]
    threads: int
    llama_cpp: Path


@dataclass(frozen=True)
class Run:
    """A route that was run: the cost of each step, the GGUF of each quant, what it left."""

    steps: dict[str, Cost]
    ggufs: dict[str, Path]
    intermediate_bytes: int

    @property
    def total(self) -> Cost:
        """All steps together."""
        first, *rest = self.steps.values()
        for cost in rest:
            first = first + cost
        return first


def run_ftpack(inputs: Inputs, folder: Path) -> Run:
    """`ftpack gguf`: one command for all quants."""
    folder.mkdir()
    command: list[str | Path] = [
        Path(sys.executable).parent / "ftpack", "gguf", inputs.adapter, "--base", inputs.base,
        "--device", "cpu", "--name", "bench", "--out", folder / "bundle",
        "--threads", str(inputs.threads), "--quiet",
    ]  # fmt: skip
    for quant in inputs.quants:
        command += ["--quant", quant]
    steps = {"ftpack gguf": measure(command, folder / "log")}
    ggufs = {quant: folder / "bundle" / f"bench-{quant}.gguf" for quant in inputs.quants}
    left = _size(folder / "bundle", "*.gguf") - sum(path.stat().st_size for path in ggufs.values())
    return Run(steps, ggufs, left)


def run_usual_route(inputs: Inputs, folder: Path) -> Run:
    """PEFT's merge, `convert_hf_to_gguf.py`, and llama.cpp's quantizer for each quant."""
    folder.mkdir()
    merged, whole, log = folder / "merged", folder / "bf16.gguf", folder / "log"
    ours: Sequence[str] = [sys.executable, "-m", "bench.usual_step"]
    steps = {
        "merge (PEFT)": measure([*ours, "merge", inputs.base, inputs.adapter, merged], log),
        "convert": measure(
            [
                *(sys.executable, inputs.llama_cpp / "convert_hf_to_gguf.py", merged),
                *("--outfile", whole, "--outtype", "bf16"),
            ],
            log,
        ),
    }
    ggufs = {}
    for quant in inputs.quants:
        ggufs[quant] = folder / f"bench-{quant}.gguf"
        step = ["quantize", whole, ggufs[quant], quant, str(inputs.threads)]
        steps[f"quantize {quant}"] = measure([*ours, *step], log)
    return Run(steps, ggufs, _size(merged, "*.safetensors") + whole.stat().st_size)


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
