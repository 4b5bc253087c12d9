"""Results for people and for pipes: plans, bundles, registrations."""

from __future__ import annotations

import json
from collections import Counter

from packager.cli.console import Console, result
from packager.files import format_bytes
from packager.pipeline.build import Bundle
from packager.pipeline.register import Registered
from packager.plan import Plan


def report_plan(plan: Plan, console: Console, *, as_json: bool) -> None:
    """The table of all quants, and what this run would do."""
    if as_json:
        result(json.dumps(plan.to_json(), indent=2))
        return
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("quant", no_wrap=True)
    for column in ("file", "memory to run", "bits/weight"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for quant in plan.quants:
        remarks = [
            text
            for text, applies in (
                ("chosen", quant.is_chosen),
                ("default", quant.is_default),
                ("needs an importance matrix", quant.needs_imatrix),
                (f"{len(quant.fallbacks)} tensors fall back", bool(quant.fallbacks)),
            )
            if applies
        ]
        table.add_row(
            quant.quant,
            format_bytes(quant.size_bytes),
            format_bytes(quant.run_memory_bytes),
            f"{quant.bits_per_weight:.2f}",
            ", ".join(remarks),
        )
    RichConsole(highlight=False, width=None if console.rich.is_terminal else 100).print(table)
    merged = f"{plan.merged_tensors} tensors merged on {plan.device}, " if plan.base else ""
    console.note(
        f"{plan.architecture}, {plan.parameters / 1e6:,.1f} M parameters; {merged}"
        f"{format_bytes(plan.read_bytes)} read once, {format_bytes(plan.write_bytes)} written to "
        f"{plan.out}, about {format_bytes(plan.memory_bytes)} of memory while packaging"
    )
    console.note("Memory to run: the weights and a key-value cache of 4096 tokens. Nothing made.")


def report_bundle(
    bundle: Bundle,
    console: Console,
    *,
    as_json: bool,
    registered: dict[str, object] | None = None,
) -> None:
    """What was made, where, and how large."""
    if as_json:
        value: dict[str, object] = {
            "folder": str(bundle.folder),
            "reused": list(bundle.reused),
            "manifest": json.loads(bundle.manifest.to_json()),
        }
        if registered is not None:
            value["ollama"] = registered
        result(json.dumps(value, indent=2))
        return
    for file in bundle.asked_for:
        result(str(bundle.folder / file.name))
        console.note(
            f"  {file.quant}: {format_bytes(file.size_bytes)}, {file.bits_per_weight:.2f} bits "
            f"per weight{' (was there already)' if file.name in bundle.reused else ''}"
        )
        # "TENSOR: Q5_0 instead of Q4_K": many tensors, few kinds.
        kinds = Counter(line.rpartition(": ")[2] for line in file.fallbacks)
        for kind, count in kinds.items():
            console.note(f"  fallback: {kind} for {count} tensors (listed in manifest.json)")


def report_registered(registered: Registered, console: Console) -> None:
    """What Ollama has now, and what it answered."""
    check = registered.check
    console.note(f"In force: {check.template_in_force}; ended by {check.done_reason}")
    console.note(f"Answer: {' '.join(check.answer.split())}")
    console.note(f"Next: ollama run {registered.names[0]}")


def registration_json(registered: Registered) -> dict[str, object]:
    """A registration as JSON values."""
    return {
        "host": registered.host,
        "version": registered.version,
        "names": list(registered.names),
        "renderer": registered.check.template_in_force,
        "answer": registered.check.answer,
        "done_reason": registered.check.done_reason,
    }
