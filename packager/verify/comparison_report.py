"""A comparison as lines of text: how many prompts are equal, and why others are not."""

from __future__ import annotations

from packager.progress import Progress
from packager.prompt.comparison import Comparison, Outcome
from packager.verify.corpus import VOCABULARY
from packager.verify.difference import differing_lines

_COUNTED: tuple[Outcome, ...] = ("equal", "known_difference", "different")


def report_comparison(comparison: Comparison, progress: Progress) -> None:
    """Report how many prompts equal the training prompts, why others do not, and what differs."""
    is_vocabulary = comparison.level == VOCABULARY
    what = "Vocabulary" if is_vocabulary else f"Prompts ({comparison.level})"
    counts = [f"{comparison.count(outcome)} {spoken(outcome)}" for outcome in _COUNTED]
    if unsupported := comparison.count("unsupported"):
        counts.append(f"{unsupported} that the chat template refuses")
    progress.note(f"{what}: {', '.join(counts)}")
    for cause, count in comparison.causes.items():
        progress.note(f"  known difference: {cause} ({count})")
    for item in comparison.compared:
        if item.outcome != "different":
            continue
        name = item.conversation.name
        if item.rendered is None:
            progress.warn(f"'{name}' is refused: {'; '.join(item.causes)}")
            continue
        why = f", as {' and '.join(item.causes)}" if item.causes else ""
        progress.warn(f"'{name}' differs{why}:")
        for line in differing_lines(item.expected or "", item.rendered):
            progress.note(f"    {line}")


def spoken(outcome: str) -> str:
    """An outcome as people read it (`known difference`)."""
    return outcome.replace("_", " ")
