"""Both routes in turn, several times, on the same inputs; their GGUFs are compared once."""

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
from tests.usual_route import Tensor, read_gguf

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Round:
    """One run of each route.

    Attributes:
        ftpack: `ftpack gguf` with all quants.
        usual: merge, convert, and quantize for each quant; None if it was not run.
        each: `ftpack gguf` with a single quant, for each of them; empty if it was not run.
        merge: `ftpack merge`; None if it was not run.
    """

    ftpack: Run
    usual: Run | None = None
    each: dict[str, Run] = field(default_factory=dict)
    merge: Run | None = None


@dataclass(frozen=True)
class Plan:
    """What is run: the quants, how often, and whether what else there is to run."""

    quants: tuple[str, ...]
    repeat: int
    has_usual: bool
    has_each: bool
    has_merge: bool = False


@dataclass(frozen=True)
class Measured:
    """The rounds, and for each quant the tensors in which two of its GGUFs differ."""

    rounds: tuple[Round, ...]
    differing_tensors: dict[str, list[str]]


def run_rounds(inputs: Inputs, plan: Plan, work: Path, say: Callable[[str], None]) -> Measured:
    """Runs the routes one after another, `plan.repeat` times.

    What a run wrote is deleted before the next one. After the first round's runs the digests of
    their GGUFs' tensors are taken, between the measured commands; later rounds are not compared.
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
    """The runs of one round, and what their GGUFs hold if that is to be compared."""

    def __init__(self, inputs: Inputs, work: Path, is_compared: bool) -> None:
        self.inputs, self.folder, self.is_compared = inputs, work / "run", is_compared
        self.found: dict[str, list[Tensors]] = {}

    def run(
        self, route: Callable[[Inputs, tuple[str, ...], Path], Run], quants: tuple[str, ...]
    ) -> Run:
        """Runs a route and deletes what it wrote."""
        try:
            run = route(self.inputs, quants, self.folder)
            for quant in quants if self.is_compared else ():
                _, tensors = read_gguf(gguf_path(self.folder, quant), self.inputs.llama_cpp)
                self.found.setdefault(quant, []).append(tensors)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return run

    def differing_tensors(self, quant: str) -> list[str]:
        """Names of the tensors that are not the same in all GGUFs of a quant."""
        first, *others = self.found[quant]
        return sorted({name for other in others for name in differing_names(first, other)})


def differing_names(left: Tensors, right: Tensors) -> list[str]:
    """Names of the tensors whose shape, type or bytes are not the same."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
