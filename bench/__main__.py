"""Measures `ftpack gguf` beside the usual route, in the same run and on the same machine.

    scripts/bench --shape 1.2b --quant q4_k_m --quant q8_0 --json bench.json

Makes a random model of a known shape with a real vocabulary and a LoRA, runs both routes, checks
that every tensor of their GGUFs is the same, and prints what each cost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.model import SHAPES
from bench.report import print_report
from bench.routes import Inputs, Run, run_ftpack, run_usual_route
from packager.gguf.quants import parse_quant
from packager.gguf.toolchain import find_toolchain
from tests.usual_route import read_gguf

LIBRARIES = ("ftpack", "torch", "transformers", "peft", "llama_cpp_python")


def main() -> None:
    """Reads the command line and runs the bench."""
    options = _parse_arguments()
    llama_cpp = find_toolchain().folder
    quants = tuple(parse_quant(name).name for name in options.quant or ["q4_k_m"])
    machine = describe_machine()
    if machine["load_average"] > 0.5:
        _say(f"the machine is busy (load {machine['load_average']}): times will be too long")
    with tempfile.TemporaryDirectory(prefix="ftpack-bench.", dir=options.work) as name:
        work = Path(name)
        _say(f"making a random model: {SHAPES[options.shape].description}")
        parameters = _make_inputs(options.shape, work, llama_cpp)
        inputs = Inputs(work / "base", work / "lora", quants, options.threads, llama_cpp)
        _say("ftpack")
        ours = run_ftpack(inputs, work / "ftpack")
        _say("the usual route: merge, convert, quantize")
        usual = run_usual_route(inputs, work / "usual")
        _say("comparing the tensors of both")
        differing = {quant: differing_tensors(ours, usual, quant, llama_cpp) for quant in quants}
        result = {
            "machine": machine,
            "model": {"shape": options.shape, "parameters": parameters, "lora": "r=16, all-linear"},
            "quants": quants,
            "threads": options.threads,
            "ftpack": _as_json(ours),
            "usual": _as_json(usual),
            "differing_tensors": differing,
        }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print_report(result, ours, usual)
    if any(differing.values()):
        sys.exit(1)


def describe_machine() -> dict[str, Any]:
    """CPU, cores, memory and versions: without these the figures mean nothing."""
    import psutil

    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def differing_tensors(ours: Run, usual: Run, quant: str, llama_cpp: Path) -> list[str]:
    """Names of the tensors whose shape, type or bytes are not the same in both GGUFs."""
    (_, left), (_, right) = (read_gguf(run.ggufs[quant], llama_cpp) for run in (ours, usual))
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--quant", action="append", metavar="Q", help="default q4_k_m; repeatable")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="folder for the files, deleted afterwards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def _make_inputs(shape: str, work: Path, llama_cpp: Path) -> int:
    command = [sys.executable, "-m", "bench.model", shape, str(work), str(llama_cpp)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: no model could be made:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "steps": {name: dataclasses.asdict(cost) for name, cost in run.steps.items()},
        "total": dataclasses.asdict(run.total),
        "intermediate_bytes": run.intermediate_bytes,
    }


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
