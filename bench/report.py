"""The bench's figures as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench.measure import Cost
from bench.routes import Run
from packager.files import format_bytes


def print_report(result: dict[str, Any], ours: Run, usual: Run) -> None:
    """Each step, the totals, how many times less ftpack needs, and whether the GGUFs agree."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table("", "wall", "CPU", "peak RSS", "of it own", "written", "left over")
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column.header else "left"
    for name, cost in usual.steps.items():
        table.add_row(f"  {name}", *_cells(cost), "", style="dim")
    table.add_row("usual route", *_cells(usual.total), format_bytes(usual.intermediate_bytes))
    table.add_row("ftpack gguf", *_cells(ours.total), format_bytes(ours.intermediate_bytes))
    table.add_section()
    table.add_row("ratio", *_ratios(usual.total, ours.total), "", style="bold")
    console.print(table)
    console.print(
        "Own memory is without mapped files; left over are files that only the route needs."
    )
    machine, model = result["machine"], result["model"]
    console.print(
        f"{model['parameters'] / 1e9:.2f} B weights ({model['shape']}), LoRA {model['lora']}, "
        f"{', '.join(result['quants'])}, {result['threads']} threads; {machine['cpu']}, "
        f"{machine['cores']} cores, {format_bytes(machine['memory_bytes'])}, "
        f"load {machine['load_average']} before"
    )
    for quant, names in result["differing_tensors"].items():
        said = f"{len(names)} tensors differ: {names[:3]}" if names else "every tensor is the same"
        console.print(f"{quant}: {said}")


_FIGURES: tuple[tuple[Callable[[Cost], float], Callable[[float], str]], ...] = (
    (lambda cost: cost.wall_s, lambda value: f"{value:.1f} s"),
    (lambda cost: cost.cpu_s, lambda value: f"{value:.1f} s"),
    (lambda cost: cost.peak_bytes, format_bytes),
    (lambda cost: cost.peak_own_bytes, format_bytes),
    (lambda cost: cost.written_bytes, format_bytes),
)


def _cells(cost: Cost) -> list[str]:
    return [write(take(cost)) for take, write in _FIGURES]


def _ratios(usual: Cost, ours: Cost) -> list[str]:
    return [f"{take(usual) / max(take(ours), 1e-9):.1f} x" for take, _ in _FIGURES]
