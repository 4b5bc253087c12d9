"""Which tensors of a checkpoint come from which tuned modules, and which are no longer tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packager.errors import UnsupportedError
from packager.merge.next_steps import MERGE_WITH_PEFT
from packager.merge.peft.layout import Layout
from packager.merge.peft.modules import TunedModule
from packager.model.tensor_file import TensorInfo


@dataclass(frozen=True)
class WriteGroup:
    """Modules whose results can only be written together; as a rule one.

    Attributes:
        modules: what is merged.
        written: the parameters that are written, including untuned ones.
        outputs: the checkpoint's tensors that they are written as.
    """

    modules: tuple[TunedModule, ...]
    written: frozenset[str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class WritePlan:
    """Everything that an adapter changes.

    Attributes:
        groups: what is computed.
        added: tensors that the base does not have, or not of that size: those that are no longer
            tied, and the rows of a larger vocabulary.
        copies: for those that keep the base's values, the base's tensor that has them.
        is_untied: whether the configuration must say that embeddings are not tied.
        warnings: where PEFT's own merge would differ from the adapter's model.
    """

    groups: tuple[WriteGroup, ...]
    added: tuple[TensorInfo, ...]
    copies: Mapping[str, str]
    is_untied: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _TiedParameters:
    """How tied parameters are written.

    Attributes:
        dropped: those that are written under the name of another, with equal values.
        split: those that are each written with their own values, and no longer tied.
        warnings: about those whose values differ from PEFT's own merge.
    """

    dropped: frozenset[str]
    split: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_writing(layout: Layout, modules: Sequence[TunedModule]) -> WritePlan:
    """How the results of every module are written, planned without reading anything.

    Raises:
        UnsupportedError: if the checkpoint has no place for a result.
    """
    owner = {name: module for module in modules for name in module.parameters}
    tied = _plan_tied(layout, owner)
    groups = []
    added: dict[str, TensorInfo] = {}
    for members in _connected(layout, modules):
        parameters = {name for module in members for name in module.parameters} - tied.dropped
        written = layout.siblings(parameters)
        if written:
            outputs = _outputs(layout, written, added)
            groups.append(WriteGroup(tuple(members), frozenset(written), outputs))
    copies = {}
    for name in tied.split:
        if name not in owner:
            (output,) = _outputs(layout, {name}, added)
            stored = layout.stored_tensor(name)
            if output != stored:
                copies[output] = stored
    return WritePlan(tuple(groups), tuple(added.values()), copies, bool(tied.split), tied.warnings)


def _plan_tied(layout: Layout, owner: Mapping[str, TunedModule]) -> _TiedParameters:
    dropped: set[str] = set()
    split: list[str] = []
    warnings = []
    for names in dict.fromkeys(layout.tied.values()):
        tuned = [name for name in names if name in owner]
        if not tuned:
            continue
        if len({_source(owner, name) for name in names}) == 1:
            # Some checkpoints hold a tied weight twice; others, under one of its names.
            dropped |= {name for name in names if layout.stored_name(name) != name}
            continue
        split += names
        differing = [name for name in tuned if owner[name].is_additive]
        if differing:
            warnings.append(
                f"The adapter changes {' and '.join(differing)} of the tied {' and '.join(names)}: "
                "each is written with its own values, as the adapter's model has them, and no "
                "longer tied; PEFT's own merge would change all of them alike"
            )
    return _TiedParameters(frozenset(dropped), tuple(split), tuple(warnings))


def _source(owner: Mapping[str, TunedModule], name: str) -> object:
    module = owner.get(name)
    return None if module is None else module.sources[module.parameters.index(name)]


def _connected(layout: Layout, modules: Sequence[TunedModule]) -> list[list[TunedModule]]:
    """Modules grouped by the tensors of the checkpoint that they share."""
    groups: list[tuple[set[str], list[TunedModule]]] = []
    for module in modules:
        names = layout.siblings(module.parameters)
        members = [module]
        separate = []
        for other_names, others in groups:
            if names & other_names:
                names, members = names | other_names, [*others, *members]
            else:
                separate.append((other_names, others))
        groups = [*separate, (names, members)]
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
                f"{list(meta.shape)}, and the base's checkpoint has no such tensor of that shape.",
                next_step=MERGE_WITH_PEFT,
            )
    return tuple(metas)
