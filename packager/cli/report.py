"""Report results, for people or as JSON: plans, bundles, prompts, registrations."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence

from packager.cli.console import Console, result
from packager.cli.options import Output
from packager.errors import UsageError
from packager.files import format_bytes
from packager.package.plan import Plan
from packager.prompt.comparison import ComparedPrompt, Comparison
from packager.prompt.conversation import Conversation
from packager.verbs.build import Built
from packager.verbs.prompt import PromptReport
from packager.verbs.register import Registered
from packager.verify.comparison_report import report_comparison, spoken
from packager.verify.difference import side_by_side


def report_plan(plan: Plan, output: Output) -> None:
    """Print the table of quants, and what this run would do."""
    if output.as_json:
        result(json.dumps(plan.to_json(), indent=2))
        return
    from rich.console import Console as RichConsole
    from rich.table import Table

    console = output.console
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
    if plan.projector:
        size = format_bytes(plan.projector.size_bytes)
        console.note(f"Beside each: {plan.projector.file_name}, {size}, for images or sounds")
    console.note(
        f"Memory to run: the weights and a key-value cache of {plan.context_length} tokens. "
        "Nothing was made."
    )


def report_bundle(built: Built, output: Output, registered: Registered | None = None) -> None:
    """Print what was made, where, and how large it is; as JSON also what Ollama has."""
    bundle, console = built.bundle, output.console
    if output.as_json:
        result(json.dumps(_bundle_json(built, registered), indent=2))
        return
    for file in bundle.ggufs:
        result(str(bundle.folder / file.name))
        console.note(
            f"  {file.quant}: {format_bytes(file.size_bytes)}, {file.bits_per_weight:.2f} bits "
            f"per weight{' (was there already)' if file.name in built.reused else ''}"
        )
        # "TENSOR: Q5_0 instead of Q4_K": there are many tensors, and few kinds.
        kinds = Counter(line.rpartition(": ")[2] for line in file.fallbacks)
        for kind, count in kinds.items():
            console.note(f"  fallback: {kind} for {count} tensors (listed in manifest.json)")
    if projector := bundle.manifest.projector:
        result(str(bundle.folder / projector.name))
        console.note(
            f"  for images or sounds, beside each quant: {format_bytes(projector.size_bytes)}"
            f"{' (was there already)' if projector.name in built.reused else ''}"
        )


def _bundle_json(built: Built, registered: Registered | None) -> dict[str, object]:
    value: dict[str, object] = {
        "folder": str(built.bundle.folder),
        "reused": list(built.reused),
        "manifest": json.loads(built.bundle.manifest.to_json()),
    }
    if built.base_choice is not None:
        value["base_choice"] = built.base_choice.to_json()
    if registered is not None:
        value["ollama"] = registration_json(registered)
    return value


def report_prompt(report: PromptReport, output: Output) -> None:
    """Print a table with the outcome of each conversation in each place, and what differs."""
    if output.as_json:
        result(json.dumps(_prompt_json(report), indent=2, ensure_ascii=False))
        return
    console = output.console
    console.note(f"{report.name}: {report.reason}")
    comparisons = report.comparisons
    width = max(len(item.conversation.name) for item in comparisons[0].compared)
    levels = [comparison.level for comparison in comparisons]
    columns = [max(len("known difference"), len(level)) for level in levels]
    head = "  ".join(f"{level:<{size}}" for level, size in zip(levels, columns, strict=True))
    result(f"  N  {'conversation':<{width}}  {head}".rstrip())
    rows = zip(*(comparison.compared for comparison in comparisons), strict=True)
    for number, row in enumerate(rows, start=1):
        outcomes = "  ".join(
            f"{_outcome(item):<{size}}" for item, size in zip(row, columns, strict=True)
        )
        result(f"{number:>3}  {row[0].conversation.name:<{width}}  {outcomes}".rstrip())
    for comparison in report.all_comparisons:
        report_comparison(comparison, console)


def require_conversation(number: int, conversations: Sequence[Conversation]) -> None:
    """Refuse a number that the table of these conversations will not have.

    Raises:
        UsageError: with the number of conversations.
    """
    if number > len(conversations):
        raise UsageError(
            f"--show {number}: there are {len(conversations)} conversations.",
            next_step="Choose a number from the table that `ftpack prompt` prints without --show.",
        )


def show_conversation(report: PromptReport, number: int) -> None:
    """Print both prompts of the conversation with this number in the table, for each place."""
    width = shutil.get_terminal_size((120, 24)).columns
    for comparison in report.comparisons:
        item = comparison.compared[number - 1]
        result(f"{item.conversation.name}: {_outcome(item)} ({comparison.level})")
        for cause in item.causes:
            result(f"  {cause}")
        if item.expected is not None:
            result("training, then the other; ⏎ ends a line, · is a space at its end, | differs")
            for line in side_by_side(item.expected, item.rendered or "", width):
                result(line)


def _outcome(item: ComparedPrompt) -> str:
    return "other ids" if item.has_same_ids is False else spoken(item.outcome)


def _prompt_json(report: PromptReport) -> dict[str, object]:
    vocabulary = report.vocabulary
    return {
        "name": report.name,
        "chat_template": report.chat_template.origin,
        "reason": report.reason,
        "comparisons": [comparison_json(comparison) for comparison in report.comparisons],
        "vocabulary": None if vocabulary is None else comparison_json(vocabulary),
    }


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """A comparison as JSON values."""
    return {
        "level": comparison.level,
        "failed": [item.conversation.name for item in comparison.failed],
        "conversations": [
            {
                "name": item.conversation.name,
                "kind": item.conversation.kind,
                "outcome": item.outcome,
                "causes": list(item.causes),
                "same_ids": item.has_same_ids,
                "expected": item.expected,
                "rendered": item.rendered,
            }
            for item in comparison.compared
        ],
    }


def report_registered(registered: Registered, console: Console) -> None:
    """Print what Ollama has now, and what it answered."""
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
        "capabilities": list(registered.check.capabilities),
        "comparisons": [comparison_json(each) for each in registered.comparisons],
    }
