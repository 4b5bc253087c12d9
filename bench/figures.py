"""Figures over all rounds (median, minimum, maximum), and the comparison of the two routes."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.measure import Cost
from bench.rounds import Round
from bench.routes import CONVERT, MERGE, QUANTIZE, Run

FIGURES = tuple(field.name for field in dataclasses.fields(Cost))


@dataclass(frozen=True)
class Spread:
    """A figure over all rounds."""

    median: float
    min: float
    max: float


# The key is the figure's name: an attribute of `Cost`.
Spreads = dict[str, Spread]


@dataclass(frozen=True)
class Comparison:
    """The cost of the same GGUFs on both routes.

    Attributes:
        quants: the quants of the GGUFs.
        ftpack: one `ftpack gguf` command for all of them.
        usual: one merge, one conversion, and a quantization for each quant; None if not run.
        steps: the usual route's steps by name; empty if not run.
    """

    quants: tuple[str, ...]
    ftpack: Spreads
    usual: Spreads | None
    steps: dict[str, Spreads]

    @property
    def name(self) -> str:
        """The quant's name, or `all N together`."""
        count = len(self.quants)
        if count == 1:
            return self.quants[0]
        return "both together" if count == 2 else f"all {count} together"

    def ratio(self, figure: str) -> float | None:
        """Returns the usual route's median divided by ftpack's."""
        if self.usual is None or not self.ftpack[figure].median:
            return None
        return self.usual[figure].median / self.ftpack[figure].median


def compare(rounds: Sequence[Round], quants: tuple[str, ...]) -> list[Comparison]:
    """Returns a comparison for each quant that was measured alone, then one for all together."""
    alone = [quant for quant in quants if all(quant in round_.each for round_ in rounds)]
    return [
        *(_compare(rounds, (quant,), [x.each[quant] for x in rounds]) for quant in alone),
        _compare(rounds, quants, [round_.ftpack for round_ in rounds]),
    ]


def _compare(rounds: Sequence[Round], quants: tuple[str, ...], ours: list[Run]) -> Comparison:
    usual = [round_.usual.steps for round_ in rounds if round_.usual]
    names = (MERGE, CONVERT, *(f"{QUANTIZE} {quant}" for quant in quants))
    return Comparison(
        quants=quants,
        ftpack=spreads([_total(list(run.steps.values())) for run in ours]),
        usual=spreads([_total([steps[name] for name in names]) for steps in usual])
        if usual
        else None,
        steps={name: spreads([steps[name] for steps in usual]) for name in names if usual},
    )


def spreads(costs: Sequence[Cost]) -> Spreads:
    """Returns the spread of each figure over the costs of one command in all rounds."""
    return {name: _spread([getattr(cost, name) for cost in costs]) for name in FIGURES}


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _total(costs: list[Cost]) -> Cost:
    first, *rest = costs
    for cost in rest:
        first = first + cost
    return first
