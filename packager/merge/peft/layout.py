"""The mapping between a checkpoint's tensors and the parameters of transformers' model of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from packager.errors import BaseMismatchError, UnsupportedError
from packager.files import scratch_folder, write_json
from packager.merge.next_steps import MERGE_WITH_PEFT, NAME_BASE
from packager.model.config import CONFIG_NAME, ModelConfig
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """Checkpoint tensors and the parameters that transformers makes of them.

    Attributes:
        key: the name that transformers converts the group under.
        sources: names in the checkpoint, in transformers' order, each with the converter's pattern.
        parameters: names in the model, and the shapes that they get; one that is fused (experts)
            has several sources, one that is split shares its source.
        converter: transformers' `WeightConverter`, or None where the one source is the parameter.
    """

    key: str
    sources: tuple[tuple[str, str | None], ...]
    parameters: Mapping[str, tuple[int, ...]]
    converter: Any


class Layout:
    """transformers' own mapping between a checkpoint and its model (`core_model_loading`).

    Args:
        tensors: the checkpoint's, by name.
        config: its configuration.

    Raises:
        UnsupportedError: if transformers does not know the architecture.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> None:
        self.tensors = tensors
        self.config = config
        # On the meta device and without PEFT's layers: some conversions look a parameter up in it.
        self.model = build_model(config)
        self._state: dict[str, torch.Tensor] = self.model.state_dict()
        self.groups = _groups(self.model, self._state, tensors)
        self._resized: set[str] = set()
        self._group_of = {name: group for group in self.groups for name in group.parameters}
        self.tied = tied_parameters(self.model)

    def resize(self, rows: int) -> None:
        """Resize the vocabulary, as the adapter's training did; at most once."""
        before = self._state
        resize(self.model, rows)
        self._state = self.model.state_dict()
        self._resized = {n for n, t in self._state.items() if t.shape != before[n].shape}

    def is_resized(self, parameters: Iterable[str]) -> bool:
        """Whether `resize` changed the size of all of these."""
        return set(parameters) <= self._resized

    def dtype(self, parameter: str) -> torch.dtype:
        """The element type that the checkpoint keeps a parameter in."""
        name = self.stored_name(parameter)
        if name in self._group_of:
            return self.tensors[self._group_of[name].sources[0][0]].torch_dtype
        return self._state[name].dtype

    def read(
        self, parameters: Iterable[str], load: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Parameters as transformers loads them, in memory of their own.

        Args:
            parameters: names in the model.
            load: gives a tensor of the checkpoint.

        Raises:
            BaseMismatchError: naming a parameter that the checkpoint does not hold.
        """
        values: dict[str, torch.Tensor] = {}
        converted: dict[str, dict[str, torch.Tensor]] = {}
        for name in parameters:
            stored = self.stored_name(name)
            group = self._group_of.get(stored)
            if group is None:
                raise _absent(name)
            if group.converter is None:
                values[name] = load(group.sources[0][0])
                continue
            if group.key not in converted:
                converted[group.key] = _convert(self.model, group, load)
            values[name] = converted[group.key][stored].contiguous()
        return values

    def faults(self) -> list[str]:
        """The model's parameters that the checkpoint lacks or has in another shape, one line each.

        An output head may be absent: a model can be saved without one.
        """
        ignored = [re.compile(each) for each in self.model._keys_to_ignore_on_load_missing or ()]
        head = self.model.get_output_embeddings()
        optional = set(map(id, head.parameters())) if head is not None else set()
        faults = []
        for name, parameter in self.model.named_parameters():
            group = self._group_of.get(self.stored_name(name))
            if group is None:
                if id(parameter) not in optional and not any(it.search(name) for it in ignored):
                    faults.append(f"{name} is missing")
                continue
            shape = group.parameters[self.stored_name(name)]
            if shape != tuple(parameter.shape):
                faults.append(f"{name} is {list(shape)}, not {list(parameter.shape)}")
        return faults

    def plain_renamings(self) -> dict[str, str]:
        """How transformers renames the beginnings of older checkpoints' names: by pattern."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        return {
            pattern: item.target_patterns[0]
            for item in get_model_conversion_mapping(self.model)
            if type(item) is WeightRenaming and item.scope_prefix is None
            for pattern in item.source_patterns
            if pattern.startswith("^")
        }

    def siblings(self, parameters: Iterable[str]) -> set[str]:
        """The parameters that can only be written together with these."""
        names = set()
        for name in parameters:
            group = self._group_of.get(name)
            names |= {name} if group is None else set(group.parameters)
        return names

    def write(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters as the checkpoint's tensors, by the checkpoint's names.

        A parameter that it does not hold (the head of a model that is no longer tied) gets the name
        that transformers saves it under. This works on the meta device as well.
        """
        written = {}
        rest = {}
        for name, tensor in parameters.items():
            group = self._group_of.get(name)
            if group is not None and group.converter is None:
                written[group.sources[0][0]] = tensor
            else:
                rest[name] = tensor
        return written | self._revert(rest)

    def _revert(self, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        reverted: dict[str, torch.Tensor] = revert_weight_conversion(self.model, parameters)
        # Checkpoints saved from the bare model lack the head's prefix, and no record says so.
        prefix = f"{self.model.base_model_prefix}."
        if not any(name.startswith(prefix) for name in self.tensors):
            return {
                name if name in self.tensors else name.removeprefix(prefix): tensor
                for name, tensor in reverted.items()
            }
        return reverted

    def meta(self, parameter: str) -> torch.Tensor:
        """A parameter's shape and element type, as a tensor without values.

        Raises:
            UnsupportedError: if the model has no such parameter.
        """
        if parameter not in self._state:
            raise UnsupportedError(
                f"The adapter adds {parameter} to the model, which its architecture does not have.",
                next_step=MERGE_WITH_PEFT,
            )
        return self._state[parameter].to(self.dtype(parameter))

    def stored_tensor(self, parameter: str) -> str:
        """The checkpoint's one tensor that holds a parameter, or the one that it is tied to.

        Raises:
            BaseMismatchError: if there is none.
        """
        group = self._group_of.get(self.stored_name(parameter))
        if group is None or len(group.sources) > 1:
            raise _absent(parameter)
        return group.sources[0][0]

    def stored_name(self, parameter: str) -> str:
        """The name that the checkpoint holds a parameter under: its own, or that of a tied one."""
        if parameter in self._group_of:
            return parameter
        tied = self.tied.get(parameter, ())
        return next((name for name in tied if name in self._group_of), parameter)


def _absent(parameter: str) -> BaseMismatchError:
    return BaseMismatchError(
        f"The base has no tensor for {parameter}, which the adapter changes.",
        next_step=NAME_BASE,
    )


def build_model(config: ModelConfig) -> Any:
    """The model that a configuration describes, on the meta device, its parameters tied.

    Raises:
        UnsupportedError: if transformers cannot build it.
    """
    import torch

    try:
        described = _read_by_transformers(config)
        model_class = _model_class(described)
        with torch.device("meta"):
            model: Any = model_class._from_config(described)
        model.tie_weights()
    # Its model classes can raise any error on a configuration that is not theirs.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnsupportedError(
            f"transformers cannot build the model of {config.path}: {reason}",
            next_step="Check `model_type` and `architectures` there; a newer transformers may "
            "know the model.",
        ) from error
    return model.eval()


def _read_by_transformers(config: ModelConfig) -> Any:
    """Transformers' own configuration object, which it only builds from a file."""
    import transformers

    if not config.is_changed:
        return transformers.AutoConfig.from_pretrained(config.path.parent)
    with scratch_folder() as folder:
        write_json(folder / CONFIG_NAME, config.values)
        return transformers.AutoConfig.from_pretrained(folder)


def resize(model: Any, rows: int) -> None:
    """Resize the embeddings of a model on the meta device."""
    model.resize_token_embeddings(rows, mean_resizing=False)


def _model_class(config: Any) -> Any:
    """The class that the checkpoint names: AutoModelForCausalLM rejects most multimodal models."""
    import transformers

    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if isinstance(named, type) and hasattr(named, "generate"):
            return named
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


def _groups(
    model: Any, state: Mapping[str, torch.Tensor], tensors: Mapping[str, TensorInfo]
) -> tuple[Group, ...]:
    """Map the checkpoint as `convert_and_load_state_dict_in_model` does, without reading it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
    prefix = model.base_model_prefix
    sources: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(tensors, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if key not in state and name in state:
            key, pattern = rename_source_key(name, [], [], prefix, state)
        if key in state:
            sources.setdefault(key, []).append((name, pattern))
    # As after loading: saving undoes only what was used (else it would add a prefix).
    used = [item for item in transforms if item.was_used()]
    model._weight_conversions = used or None
    groups = []
    for key, named in sources.items():
        first, pattern = named[0]
        converter = None if pattern is None else by_pattern[pattern]
        group = Group(key, tuple(named), {key: tensors[first].shape}, converter)
        if converter is not None:
            metas = _convert(model, group, lambda name: _meta(tensors[name]))
            shapes = {name: tuple(value.shape) for name, value in metas.items()}
            group = replace(group, parameters=shapes)
        groups.append(group)
    return tuple(groups)


def _meta(info: TensorInfo) -> torch.Tensor:
    import torch

    return torch.empty(info.shape, dtype=info.torch_dtype, device="meta")


def _convert(
    model: Any, group: Group, load: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A group's parameters, which transformers' converter makes from its sources."""
    converter = copy.deepcopy(group.converter)
    for name, pattern in group.sources:
        converter.add_tensor(group.key, name, pattern, lambda name=name: load(name))
    values = converter.convert(group.key, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in values.items()}


def tied_parameters(model: Any) -> dict[str, tuple[str, ...]]:
    """The names that share the values of each tied parameter; the one that is saved comes first."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    targets = set(model.all_tied_weights_keys)
    tied = {}
    for names in names_of.values():
        if len(names) > 1:
            ordered = tuple(sorted(names, key=lambda name: name in targets))
            tied.update(dict.fromkeys(names, ordered))
    return tied
