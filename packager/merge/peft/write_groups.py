"""Which tensors of a checkpoint come out of which tuned modules, and what becomes untied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packager.errors import UnsupportedError
from packager.merge.next_steps import MERGE_WITH_PEFT
from packager.merge.peft.layout import Layout
from packager.merge.peft.modules import Unit
from packager.model.tensor_file import TensorInfo


@dataclass(frozen=True)
class Batch:
    """Modules whose results can only be written together; as a rule one.

    Attributes:
        units: the modules.
        written: the parameters that are written, the untuned ones among them included.
        outputs: the checkpoint's tensors that come out.
    """

    units: tuple[Unit, ...]
    written: frozenset[str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Batches:
    """Everything that an adapter changes.

    Attributes:
        batches: what is computed.
        added: tensors that the base does not have, or not of that size: what is no longer tied, and
            the rows of a larger vocabulary.
        copies: for those that keep the base's values, the base's tensor that has them.
        is_untied: whether the configuration must say that embeddings are not tied.
        warnings: where PEFT's own merge would give something else than the adapter's model.
    """

    batches: tuple[Batch, ...]
    added: tuple[TensorInfo, ...]
    copies: Mapping[str, str]
    is_untied: bool
    warnings: tuple[str, ...]


def find_batches(layout: Layout, units: Sequence[Unit]) -> Batches:
    """Plan the writing of every unit's results, without reading anything.

    Raises:
        UnsupportedError: if a result has no place in the checkpoint.
    """
    owner = {name: unit for unit in units for name in unit.results}
    dropped, split, warnings = _tied(layout, owner)
    batches = []
    added: dict[str, TensorInfo] = {}
    for group in _connected(layout, units):
        results = {name for unit in group for name in unit.results} - dropped
        written = layout.siblings(results)
        if written:
            outputs = _outputs(layout, written, added)
            batches.append(Batch(tuple(group), frozenset(written), outputs))
    copies = {}
    for name in split:
        if name not in owner:
            (output,) = _outputs(layout, {name}, added)
            stored = layout.stored_tensor(name)
            if output != stored:
                copies[output] = stored
    is_untied = bool(split)
    return Batches(tuple(batches), tuple(added.values()), copies, is_untied, tuple(warnings))


def _tied(layout: Layout, owner: Mapping[str, Unit]) -> tuple[set[str], list[str], list[str]]:
    """Of the tied parameters: what is written under another's name, what each for itself; why."""
    dropped: set[str] = set()
    split: list[str] = []
    warnings = []
    for names in dict.fromkeys(layout.tied.values()):
        tuned = [name for name in names if name in owner]
        if not tuned:
            continue
        values = {_value(owner, name) for name in names}
        if len(values) == 1:
            # Some checkpoints hold a tied weight twice; others, under one of its names.
            dropped |= {name for name in names if layout.stored_name(name) != name}
            continue
        split += names
        apart = [name for name in tuned if owner[name].is_additive]
        if apart:
            warnings.append(
                f"The adapter changes {' and '.join(apart)} of the tied {' and '.join(names)}: "
                "each is written with its own values, as the adapter's model has them, and no "
                "longer tied; PEFT's own merge would change all of them alike"
            )
    return dropped, split, warnings


def _value(owner: Mapping[str, Unit], name: str) -> object:
    unit = owner.get(name)
    return None if unit is None else unit.values[unit.results.index(name)]


def _connected(layout: Layout, units: Sequence[Unit]) -> list[list[Unit]]:
    """Units by what they share tensors of the checkpoint with."""
    groups: list[tuple[set[str], list[Unit]]] = []
    for unit in units:
        names = layout.siblings(unit.results)
        members = [unit]
        apart = []
        for other_names, others in groups:
            if names & other_names:
                names, members = names | other_names, [*others, *members]
            else:
                apart.append((other_names, others))
        groups = [*apart, (names, members)]
    return [members for _, members in groups]


def _outputs(layout: Layout, written: set[str], added: dict[str, TensorInfo]) -> tuple[str, ...]:
    """The checkpoint's tensors that parameters are written as; new ones go to `added`."""
    metas = layout.write({name: layout.meta(name) for name in sorted(written)})
    for name, meta in metas.items():
        info = layout.tensors.get(name)
        if info is not None and len(metas) == 1 and layout.is_resized(written):
            info = added[name] = replace(info, shape=tuple(meta.shape))
        if info is None and len(metas) == 1:
            (parameter,) = written
            stored = layout.tensors[layout.stored_tensor(parameter)]
            info = added[name] = replace(stored, name=name, shape=tuple(meta.shape))
        if info is None or info.shape != tuple(meta.shape):
            raise UnsupportedError(
                f"transformers would save {', '.join(sorted(written)[:4])} as {name} "
                f"{list(meta.shape)}, which the base's checkpoint does not have like that.",
                next_step=MERGE_WITH_PEFT,
            )
    return tuple(metas)
