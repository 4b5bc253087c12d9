"""The result of a bench, and its JSON, from which the table and the plot can be made again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import FIGURES, Comparison, compare
from bench.kernels import KernelTime
from bench.machine import Machine
from bench.measure import Cost
from bench.rounds import Measured, Round
from bench.routes import Run


@dataclass(frozen=True)
class Setting:
    """The model, the adapter and the options of a bench.

    Attributes:
        shape: a name in `bench.model.SHAPES`.
        parameters: the number of the base's weights.
        adapter: its description.
        quants: the quants in the order in which they were made.
        threads: the number of quantizing threads.
        is_cold: whether each step's inputs were dropped from the page cache first.
        quantizer: `kernels`, or `ggml` if `FTPACK_QUANTIZER` says so.
        compiled_kernels: how many kernels were compiled beforehand, once on this machine.
        compiling_s: how long that took; no other figure includes it.
    """

    shape: str
    parameters: int
    adapter: str
    quants: tuple[str, ...]
    threads: int
    is_cold: bool
    quantizer: str
    compiled_kernels: int
    compiling_s: float


@dataclass(frozen=True)
class Result:
    """A bench of both routes."""

    machine: Machine
    setting: Setting
    measured: Measured

    @property
    def comparisons(self) -> list[Comparison]:
        """The rows of the table."""
        return compare(self.measured.rounds, self.setting.quants)


def write_result(path: Path, result: Result) -> None:
    """Writes every figure of every round, and the table's figures."""
    content = dataclasses.asdict(result)
    content["comparisons"] = [
        {
            "name": row.name,
            **dataclasses.asdict(row),
            "ratio": {figure: row.ratio(figure) for figure in FIGURES},
        }
        for row in result.comparisons
    ]
    _write(path, content)


def write_kernel_times(path: Path, machine: Machine, times: list[KernelTime]) -> None:
    """Writes the time per weight of each kernel and of ggml."""
    rows = [{**dataclasses.asdict(time), "ratio": time.ratio} for time in times]
    _write(path, {"machine": dataclasses.asdict(machine), "kernels": rows})


def read_result(path: Path) -> Result:
    """Reads a file of `write_result`, and computes medians and ratios again."""
    content = json.loads(path.read_text("utf-8"))
    setting, measured = content["setting"], content["measured"]
    return Result(
        Machine(**content["machine"]),
        Setting(**setting | {"quants": tuple(setting["quants"])}),
        Measured(tuple(map(_read_round, measured["rounds"])), measured["differing_tensors"]),
    )


def _read_round(content: dict[str, Any]) -> Round:
    usual = content["usual"]
    return Round(
        ftpack=_read_run(content["ftpack"]),
        usual=_read_run(usual) if usual else None,
        each={quant: _read_run(run) for quant, run in content["each"].items()},
        merge=_read_run(content["merge"]) if content["merge"] else None,
    )


def _read_run(content: dict[str, Any]) -> Run:
    steps = {name: Cost(**cost) for name, cost in content["steps"].items()}
    return Run(steps, content["intermediate_bytes"])


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
