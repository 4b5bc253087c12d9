"""Adapters merged into their base: none, one, several one after another, or several combined."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from packager.merge.combine import merge_combined
from packager.merge.device import choose_device
from packager.merge.merge_options import MergeOptions
from packager.merge.merged import Merged, MergeFacts
from packager.merge.route import merge_one
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint


def merge(
    base: Checkpoint, adapters: Sequence[Adapter], options: MergeOptions, scratch: Path
) -> Merged:
    """A base with adapters merged in; no weight of the base is read yet.

    Args:
        base: the checkpoint that the adapters were trained on.
        adapters: in the order of merging; with none, the result is the base.
        options: the device, and the combination if the adapters become one first.
        scratch: a folder that must outlive the result: a combined adapter is written there.

    Raises:
        UsageError: if the device or the combination does not fit.
        InputRefusedError: what `merge_one` or `merge_combined` raises for the first adapter that
            does not fit.
    """
    device = choose_device(options.device)
    if options.combination is not None:
        options.combination.require_fits(len(adapters))
        folder = Path(tempfile.mkdtemp(prefix="combined-", dir=scratch))
        return merge_combined(base, adapters, options.combination, folder, device)
    if not adapters:
        return Merged(base, MergeFacts())
    if len(adapters) == 1:
        return merge_one(base, adapters[0], device)
    return _MergedInTurn(base, adapters, device)


class _MergedInTurn(Merged):
    """Several adapters merged one after another: each one's base is the result of the one before.

    The tensors are what PEFT gives by `from_pretrained` and `merge_and_unload` for each adapter in
    turn: a tensor that two of them change is rounded to the base's element type twice, as it is
    there. Each adapter's layers are put into the model that the configuration describes after the
    merge before: with the base's own, it would still be tied, or have the smaller vocabulary.

    Memory holds one module of the base at a time for each adapter, since reading the last reads
    those before it.
    """

    def __init__(self, base: Checkpoint, adapters: Sequence[Adapter], device: str) -> None:
        steps: list[Merged] = []
        for adapter in adapters:
            steps.append(merge_one(steps[-1] if steps else base, adapter, device))
        self._steps = steps
        facts = [step.facts for step in steps]
        super().__init__(
            steps[-1],
            MergeFacts(
                modules=sum(each.modules for each in facts),
                merged_names=frozenset().union(*(each.merged_names for each in facts)),
                largest_bytes=sum(each.largest_bytes for each in facts),
                held_bytes=sum(each.held_bytes for each in facts),
                warnings=tuple(dict.fromkeys(line for each in facts for line in each.warnings)),
            ),
        )

    @property
    def is_untrained(self) -> bool:
        """Whether no adapter changes anything."""
        return all(step.is_untrained for step in self._steps)

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that every adapter was applied."""
        for step in self._steps:
            step.require_all_used(read)
