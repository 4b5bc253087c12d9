"""PEFT's layers in a model whose weights take no memory, nor do the adapter's until they merge."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import BaseMismatchError, FtpackError, UnsupportedError, first_line
from packager.merge.next_steps import NAME_BASE
from packager.merge.peft.experts import is_stacked, targeted_as_stacks
from packager.merge.peft.layout import Layout, build_model, resize
from packager.merge.peft.lazy_tensor import StoredTensor, loaded
from packager.merge.peft.peft_config import ADAPTER_NAME, read_peft_config, require_every_target
from packager.merge.peft.placeholders import is_made_again, placeholders
from packager.merge.peft.resized import resized_rows
from packager.merge.plain.targets import PREFIX
from packager.model.adapter import Adapter

if TYPE_CHECKING:
    import torch


@dataclass
class Skeleton:
    """A tuned model without the base's weights.

    Attributes:
        peft_model: PEFT's model around it.
        config: PEFT's configuration of the adapter.
        empties: the base's parameters and buffers as they are in `peft_model`, of no size: the
            names that each has in the base's model, by its identity.
        overrides: values of the adapter's file for the base's own parameters (biases, resized
            embeddings), by name.
        unread: the layers' own parameters, of no size as well, by their identity: what the file
            has for them is read when their layer is merged.
        adapter: the adapter's values by their keys in `peft_model`.
        key_of: the key of each of `unread`, by its identity; `load_adapter` finds it.
        again: whether a layer has to be made anew on its real weight (`is_made_again`).
        notes: what is to be said of how the adapter was read.
        rows: the size of the vocabulary, where the adapter's training has changed it.
    """

    peft_model: Any
    config: Any
    empties: dict[int, tuple[str, ...]]
    unread: dict[int, Any]
    again: bool
    rows: int | None = None
    overrides: dict[str, torch.Tensor] = field(default_factory=dict)
    adapter: dict[str, StoredTensor | torch.Tensor] = field(default_factory=dict)
    key_of: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_factored(self) -> bool:
        """Whether PEFT computes a factorization of the base's weights again."""
        return self.again and self.config.peft_type.value not in ("BOFT", "SUPERTUNING")

    def values_of(self, module: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapter's values for a module, by their keys within it; each is read anew."""
        stem = f"{PREFIX}{module}."
        for key, value in self.adapter.items():
            if key.startswith(stem):
                yield key.removeprefix(stem), loaded(value)

    @property
    def held_bytes(self) -> int:
        """What of the base and the adapter is in memory, for as long as this is."""
        import torch

        held = [*self.peft_model.parameters(), *self.peft_model.buffers()]
        held += [*self.overrides.values(), *self.adapter.values()]
        stores = [tensor.untyped_storage() for tensor in held if isinstance(tensor, torch.Tensor)]
        return sum({store.data_ptr(): store.nbytes() for store in stores}.values())

    @property
    def tuner(self) -> Any:
        """PEFT's `BaseTuner`."""
        return self.peft_model.base_model

    @property
    def root(self) -> Any:
        """The base's model, with PEFT's layers in it."""
        return self.tuner.model


def build_skeleton(layout: Layout, adapter: Adapter) -> Skeleton:
    """Put PEFT's layers for an adapter into the base's model; its values are still to be loaded.

    Args:
        layout: of the base; it takes the size of the adapter's vocabulary.
        adapter: of its weights, only the header is read.

    Raises:
        UnsupportedError: with PEFT's reason, where it does not take this adapter on this model.
        BaseMismatchError: if the base has not the targeted modules, or another vocabulary.
    """
    model = build_model(layout.config)
    rows = resized_rows(model, adapter.weights)
    if rows is not None:
        layout.resize(rows)
        resize(model, rows)
    empties = _empty(model, layout)
    with warnings.catch_warnings():
        # What PEFT only warns of is an error here, or is said by ftpack in its own words.
        warnings.simplefilter("ignore")
        return _inject(model, adapter, empties, rows)


def empty_model(layout: Layout) -> Any:
    """The base's model, its weights zeros that take no memory."""
    model = build_model(layout.config)
    _empty(model, layout)
    return model


def _empty(model: Any, layout: Layout) -> dict[int, tuple[str, ...]]:
    """Replace what a model on the meta device holds by zeros that take no memory.

    Not by nothing: PEFT would put its own layers on the meta device, too, and lose what it makes
    there from seeds.
    """
    import torch

    made: dict[int, Any] = {}
    names: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():
        stem = f"{module_name}." if module_name else ""
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None:
                continue
            if name in module._non_persistent_buffers_set:
                # No file holds it and merging has no use for it: if it had, the result would show.
                module._buffers[name] = torch.full_like(
                    value, float("nan") if value.is_floating_point() else 0, device="cpu"
                )
                continue
            if id(value) not in made:
                zeros = torch.zeros((), dtype=layout.dtype(stem + name)).expand(value.shape)
                is_parameter = name in module._parameters
                made[id(value)] = (
                    torch.nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros
                )
            empty = made[id(value)]
            (module._parameters if name in module._parameters else module._buffers)[name] = empty
            names.setdefault(id(empty), []).append(stem + name)
    model._ftpack_empties = list(made.values())  # ids stay theirs while these live
    return {key: tuple(value) for key, value in names.items()}


def _inject(
    model: Any, adapter: Adapter, empties: dict[int, tuple[str, ...]], rows: int | None
) -> Skeleton:
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    config = read_peft_config(adapter)
    again = is_made_again(config)
    neutral = copy.deepcopy(config)
    if again and config.peft_type.value == "LORA":
        neutral.init_lora_weights = True
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    unread: dict[int, Any] = {}
    is_on_stacks = is_stacked(adapter.config.raw, adapter.weights.tensors)
    as_stacks = targeted_as_stacks(neutral, model) if is_on_stacks else nullcontext()
    try:
        with placeholders(config, empties, adapter.weights, unread), as_stacks:
            peft_model = model_class(model, neutral, ADAPTER_NAME)
    except FtpackError:
        raise
    # Each of its methods fails in its own way at what it does not take.
    except Exception as error:
        kind = BaseMismatchError if "target" in str(error).lower() else UnsupportedError
        raise kind(
            f"PEFT does not take {adapter.config.path} on this base: {first_line(error)}",
            next_step=NAME_BASE,
        ) from error
    if config.peft_type.value == "LORA":
        neutral.init_lora_weights = config.init_lora_weights
    require_every_target(adapter, neutral, peft_model)
    _require_biases(adapter.folder, peft_model)
    return Skeleton(peft_model, neutral, empties, unread, again, rows)


def _require_biases(folder: Path, peft_model: Any) -> None:
    """A trained bias needs one in the base to be added to."""
    for name, layer in peft_model.base_model.model.named_modules():
        has_bias = getattr(layer, "lora_bias", {}).get(ADAPTER_NAME) or hasattr(layer, "beft_bias")
        if has_bias and getattr(layer.get_base_layer(), "bias", None) is None:
            raise UnsupportedError(
                f"{folder} has trained a bias for {name}, and the base has none there to add it "
                "to.",
                next_step="Train without `lora_bias`, or on modules that have a bias: a merged "
                "model has no place for it.",
            )
