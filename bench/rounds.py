"""Runs both routes several times in turn on the same inputs, and compares their GGUFs once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.routes import (
    Inputs,
    Run,
    gguf_path,
    run_ftpack,
    run_ftpack_merge,
    run_usual_route,
)
from testing.usual_route import Tensor, read_gguf

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Round:
    """One run of each route.

    Attributes:
        ftpack: `ftpack gguf` with all quants.
        usual: merge, convert, and quantize for each quant; None if not run.
        each: `ftpack gguf` with a single quant, by quant; empty if not run.
        merge: `ftpack merge`; None if not run.
    """

    ftpack: Run
    usual: Run | None = None
    each: dict[str, Run] = field(default_factory=dict)
    merge: Run | None = None


@dataclass(frozen=True)
class Plan:
    """The quants, the number of rounds, and which further commands to run."""

    quants: tuple[str, ...]
    repeat: int
    has_usual: bool
    has_each: bool
    has_merge: bool = False


@dataclass(frozen=True)
class Measured:
    """The rounds, and for each quant the names of the tensors that differ between its GGUFs."""

    rounds: tuple[Round, ...]
    differing_tensors: dict[str, list[str]]


def run_rounds(inputs: Inputs, plan: Plan, work: Path, say: Callable[[str], None]) -> Measured:
    """Runs the routes one after another, `plan.repeat` times.

    The output of a run is deleted before the next run. The tensors of the first round's GGUFs are
    hashed between the measured commands; later rounds are not compared.
    """
    differing: dict[str, list[str]] = {}
    rounds = []
    for number in range(1, plan.repeat + 1):
        turn = _Turn(inputs, work, number == 1)
        say(f"round {number} of {plan.repeat}: ftpack")
        ftpack = turn.run(run_ftpack, plan.quants)
        usual = None
        if plan.has_usual:
            say(f"round {number} of {plan.repeat}: the usual route, merge, convert, quantize")
            usual = turn.run(run_usual_route, plan.quants)
        each = {}
        for quant in plan.quants if plan.has_each else ():
            say(f"round {number} of {plan.repeat}: ftpack, {quant} alone")
            each[quant] = turn.run(run_ftpack, (quant,))
        merge = None
        if plan.has_merge:
            say(f"round {number} of {plan.repeat}: ftpack merge")
            merge = turn.run(run_ftpack_merge, ())
        rounds.append(Round(ftpack, usual, each, merge))
        if number == 1 and (plan.has_usual or plan.has_each):
            differing = {quant: turn.differing_tensors(quant) for quant in plan.quants}
    return Measured(tuple(rounds), differing)


class _Turn:
    """The runs of one round, and the tensors of their GGUFs if they are to be compared."""

    def __init__(self, inputs: Inputs, work: Path, is_compared: bool) -> None:
        self.inputs, self.folder, self.is_compared = inputs, work / "run", is_compared
        self.tensors: dict[str, list[Tensors]] = {}

    def run(
        self, route: Callable[[Inputs, tuple[str, ...], Path], Run], quants: tuple[str, ...]
    ) -> Run:
        """Runs a route and deletes its output."""
        try:
            run = route(self.inputs, quants, self.folder)
            for quant in quants if self.is_compared else ():
                _, tensors = read_gguf(gguf_path(self.folder, quant), self.inputs.llama_cpp)
                self.tensors.setdefault(quant, []).append(tensors)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return run

    def differing_tensors(self, quant: str) -> list[str]:
        """Returns the names of the tensors that are not the same in all GGUFs of a quant."""
        first, *others = self.tensors[quant]
        return sorted({name for other in others for name in differing_names(first, other)})


def differing_names(left: Tensors, right: Tensors) -> list[str]:
    """Returns the names of the tensors whose shape, type or bytes differ."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
