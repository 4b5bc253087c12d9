"""Measures `ftpack gguf` and the usual route in the same run, on the same machine.

    scripts/bench --shape 1.2b --quant q4_k_m --quant q8_0 --each --json bench.json --plot bench.svg
    scripts/bench --shape moe-3b --rank 64 --merge --only ftpack
    scripts/bench --kernels

It makes a random model of a known shape, with a real vocabulary and an adapter, and runs both
routes several times in turn. It checks that every tensor is the same in both GGUFs, and prints the
cost of each route. Paths are relative to the project's root.

With --kernels it only times each of ftpack's quantizers and ggml's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.kernels import time_kernels
from bench.machine import describe_machine
from bench.measure import measure
from bench.model import METHODS, SHAPES, Adapter, parameter_count
from bench.plot import can_plot, write_plot
from bench.report import format_kernel_times, format_result
from bench.result import Result, Setting, read_result, write_kernel_times, write_result
from bench.rounds import Plan, run_rounds
from bench.routes import Inputs
from packager.errors import FtpackError
from packager.files import format_bytes, require_disk
from packager.gguf.quantize.quantizer import ENVIRONMENT_VARIABLE
from packager.gguf.quants import parse_quant
from packager.gguf.toolchain import find_toolchain

_COLD_HELP = """drop each step's inputs from the page cache first, so that reads through mappings
are counted; the times then include the disk"""


def main() -> None:
    """Reads the command line and runs the bench."""
    options = _parse_arguments()
    try:
        if options.kernels:
            _bench_kernels(options)
        elif options.from_json:
            _report(read_result(options.from_json), options)
        else:
            _bench_routes(options)
    except (FtpackError, RuntimeError) as error:
        sys.exit(f"bench: {error}")


def _bench_kernels(options: argparse.Namespace) -> None:
    machine = describe_machine()
    _warn_if_busy(machine.load_average)
    times = []
    for time in time_kernels():
        times.append(time)
        _say(f"{time.type_name}{', with importance' if time.has_importance else ''}")
    print(format_kernel_times(machine, times), end="")
    if options.json:
        write_kernel_times(options.json, machine, times)
    if not all(time.has_same_bytes for time in times):
        sys.exit(1)


def _bench_routes(options: argparse.Namespace) -> None:
    llama_cpp = find_toolchain().folder
    quants = tuple(dict.fromkeys(parse_quant(name).name for name in options.quant or ["q4_k_m"]))
    plan = Plan(
        quants,
        options.repeat,
        has_usual=options.only != "ftpack",
        has_each=options.each and len(quants) > 1,
        has_merge=options.merge,
    )
    adapter = Adapter(options.method, options.rank)
    machine = describe_machine()
    _warn_if_busy(machine.load_average)
    with _work_folder(options.work) as work:
        model = (options.keep_model or work / "model").absolute()
        _require_disk_space(options.shape, plan, work, model)
        parameters = _make_inputs(options.shape, adapter, model, llama_cpp)
        compiled, compiling_s = _compile_kernels(work)
        inputs = Inputs(
            model / "base",
            model / "adapter",
            options.threads,
            llama_cpp,
            options.cold,
            options.device,
        )
        measured = run_rounds(inputs, plan, work, _say)
    setting = Setting(
        shape=options.shape,
        parameters=parameters,
        adapter=str(adapter),
        quants=quants,
        threads=options.threads,
        is_cold=options.cold,
        quantizer=os.environ.get(ENVIRONMENT_VARIABLE) or "kernels",
        compiled_kernels=compiled,
        compiling_s=compiling_s,
    )
    _report(Result(machine, setting, measured), options)


def _report(result: Result, options: argparse.Namespace) -> None:
    print(format_result(result), end="")
    if options.json:
        write_result(options.json, result)
    if options.plot:
        setting = result.setting
        title = f"From an adapter to GGUFs, {setting.parameters / 1e9:.1f} B weights, no GPU"
        write_plot(options.plot, result.comparisons, title)
    if any(result.measured.differing_tensors.values()):
        sys.exit(1)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    cores = len(os.sched_getaffinity(0))
    add("--shape", choices=SHAPES, default="small", help="default small")
    add("--method", choices=METHODS, default="lora", help="the adapter's method, default lora")
    add("--rank", type=int, default=16, metavar="R", help="the adapter's rank, default 16")
    add("--quant", action="append", metavar="Q", help="default q4_k_m; repeatable")
    add("--each", action="store_true", help="also run ftpack for each quant alone")
    add("--merge", action="store_true", help="also run `ftpack merge`")
    add("--repeat", type=int, default=3, metavar="N", help="number of rounds, default 3")
    add("--only", choices=["ftpack"], help="do not run the usual route")
    add("--cold", action="store_true", help=_COLD_HELP)
    add(
        "--device",
        default="cpu",
        help="where ftpack merges, default cpu; with a GPU use --only ftpack",
    )
    add("--threads", type=int, default=cores, help="quantizing threads, default one per core")
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="where to put the temporary files",
    )
    add("--keep-model", type=Path, metavar="DIR", help="keep the model there, or reuse it")
    add("--kernels", action="store_true", help="time each kernel and ggml's quantizer instead")
    add("--from-json", type=Path, metavar="FILE", help="report these figures; measure nothing")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the times (needs matplotlib)")
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    if options.work and not options.work.is_dir():
        parser.error(f"--work {options.work} is not a folder")
    if options.plot and not can_plot():
        parser.error("--plot needs matplotlib: .venv/bin/pip install matplotlib")
    if options.plot and options.kernels:
        parser.error("--plot draws the two routes; it cannot be used with --kernels")
    return options


@contextlib.contextmanager
def _work_folder(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ftpack-bench.", dir=parent) as name:
        yield Path(name)


def _make_inputs(shape: str, adapter: Adapter, folder: Path, llama_cpp: Path) -> int:
    """Makes the model and the adapter unless they exist; returns the number of weights."""
    marker = folder / "bench.json"
    if not marker.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            sys.exit(f"bench: {folder} holds other files or an incomplete model; remove it")
        _say(f"making a random model: {SHAPES[shape].description}; {adapter}")
        command = [
            *(sys.executable, "-m", "bench.model", shape, adapter.method, str(adapter.rank)),
            *(str(folder), str(llama_cpp)),
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(f"bench: the model could not be made:\n{process.stderr[-2000:]}")
    record = json.loads(marker.read_text("utf-8"))
    if (record.get("shape"), record.get("adapter")) != (shape, str(adapter)):
        sys.exit(
            f"bench: {folder} holds {record['shape']} with {record['adapter']}, not {shape} "
            f"with {adapter}; choose another folder"
        )
    return int(record["parameters"])


def _compile_kernels(work: Path) -> tuple[int, float]:
    """Returns how many kernels were compiled, and how long that took in seconds."""
    _say("compiling the kernels that this machine has not compiled yet")
    log = work / "compile.log"
    cost = measure([sys.executable, "-m", "bench.compile_step"], log)
    return int(log.read_text("utf-8").split()[-1]), cost.wall_s


def _require_disk_space(shape: str, plan: Plan, work: Path, model: Path) -> None:
    """Raises before any work if the disk is too small; counts 8.5 bits per weight of a GGUF."""
    sixteen_bits = 2 * parameter_count(SHAPES[shape])
    needed = len(plan.quants) * sixteen_bits * 8.5 / 16
    if plan.has_usual:
        needed += 2 * sixteen_bits  # the merged model, and its 16-bit GGUF
    if not (model / "bench.json").is_file():
        needed += sixteen_bits
    _say(f"up to {format_bytes(needed)} of disk space are needed")
    require_disk(work, int(needed), "The bench")


def _warn_if_busy(load_average: float) -> None:
    if load_average > 0.5:
        _say(f"the machine is busy (load {load_average}), so the times will be too long")


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
