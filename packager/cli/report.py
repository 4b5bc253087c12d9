"""Results for people and for pipes: plans, bundles, registrations."""

from __future__ import annotations

import json
import shutil
from collections import Counter

from packager.cli.console import Console, result
from packager.cli.difference import differing_lines, side_by_side
from packager.errors import UsageError
from packager.files import format_bytes
from packager.package.plan import Plan
from packager.prompt.comparison import Compared, Proof
from packager.verbs.build import Bundle
from packager.verbs.prompt import ProvedPrompt
from packager.verbs.register import Registered


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
    if plan.projector:
        size = format_bytes(plan.projector.size_bytes)
        console.note(f"Beside each: {plan.projector.file_name}, {size}, for images or sounds")
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
        if bundle.nearness is not None:
            value["nearness"] = bundle.nearness.to_json()
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
    if projector := bundle.manifest.projector:
        result(str(bundle.folder / projector.name))
        console.note(
            f"  for images or sounds, beside each quant: {format_bytes(projector.size_bytes)}"
            f"{' (was there already)' if projector.name in bundle.reused else ''}"
        )


def report_prompt(proved: ProvedPrompt, console: Console, *, as_json: bool) -> None:
    """A table of conversations, each with what became of it in each place."""
    if as_json:
        result(json.dumps(_prompt_json(proved), indent=2, ensure_ascii=False))
        return
    console.note(f"{proved.name}: {proved.reason}")
    width = max(len(item.conversation.name) for item in proved.proofs[0].compared)
    levels = [proof.level for proof in proved.proofs]
    columns = [max(9, len(level)) for level in levels]
    head = "  ".join(f"{level:<{size}}" for level, size in zip(levels, columns, strict=True))
    result(f"  N  {'conversation':<{width}}  {head}".rstrip())
    for number, row in enumerate(zip(*(proof.compared for proof in proved.proofs), strict=True), 1):
        outcomes = "  ".join(
            f"{_outcome(item):<{size}}" for item, size in zip(row, columns, strict=True)
        )
        result(f"{number:>3}  {row[0].conversation.name:<{width}}  {outcomes}".rstrip())
    for proof in proved.all_proofs:
        report_proof(proof, console)


def report_proof(proof: Proof, console: Console) -> None:
    """How many prompts are those of training, why others are not, and what differs unexplained."""
    what = "Vocabulary" if proof.level == "vocabulary" else f"Prompts ({proof.level})"
    counts = [f"{proof.count(outcome)} {outcome}" for outcome in ("equal", "declared", "different")]
    if refused := proof.count("not taken"):
        counts.append(f"{refused} not taken by the chat template")
    console.note(f"{what}: {', '.join(counts)}")
    for cause, count in proof.causes.items():
        console.note(f"  declared: {cause} ({count})")
    for item in proof.compared:
        if item.outcome == "different" and item.rendered is None:
            console.warn(f"'{item.conversation.name}' is refused: {'; '.join(item.causes)}")
        elif item.outcome == "different":
            why = f", as {' and '.join(item.causes)}" if item.causes else ""
            console.warn(f"'{item.conversation.name}' differs{why}:")
            for line in differing_lines(item.expected or "", item.rendered or ""):
                console.note(f"    {line}")


def show_conversation(proved: ProvedPrompt, number: int) -> None:
    """Both renderings of the conversation with this number in the table, for each place."""
    if number > len(proved.proofs[0].compared):
        raise UsageError(
            f"--show {number}: there are {len(proved.proofs[0].compared)} conversations.",
            next_step="Take a number from the table.",
        )
    width = shutil.get_terminal_size((120, 24)).columns
    for proof in proved.proofs:
        item = proof.compared[number - 1]
        result(f"{item.conversation.name}: {_outcome(item)} ({proof.level})")
        for cause in item.causes:
            result(f"  {cause}")
        if item.expected is not None:
            result("training, then the other; ⏎ a line's end, · a space at one, | a difference")
            for line in side_by_side(item.expected, item.rendered or "", width):
                result(line)


def _outcome(item: Compared) -> str:
    return "other ids" if item.has_same_ids is False else item.outcome


def _prompt_json(proved: ProvedPrompt) -> dict[str, object]:
    return {
        "name": proved.name,
        "chat_template": proved.chat_template.origin,
        "reason": proved.reason,
        "proofs": [proof_json(proof) for proof in proved.proofs],
        "vocabulary": None if proved.vocabulary is None else proof_json(proved.vocabulary),
    }


def proof_json(proof: Proof) -> dict[str, object]:
    """A proof as JSON values."""
    return {
        "level": proof.level,
        "failed": [item.conversation.name for item in proof.failed],
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
            for item in proof.compared
        ],
    }


def report_registered(registered: Registered, console: Console) -> None:
    """What Ollama has now, and what it answered."""
    check = registered.check
    for proof in registered.proofs:
        report_proof(proof, console)
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
        "proofs": [proof_json(proof) for proof in registered.proofs],
    }
