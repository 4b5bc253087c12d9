"""A tuned model without memory: PEFT's layers, whose weights are read when they are merged."""

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
from packager.merge.peft.lazy_tensor import LazyTensor, as_tensor
from packager.merge.peft.peft_config import ADAPTER_NAME, read_peft_config, require_every_target
from packager.merge.peft.placeholders import must_be_rebuilt, placeholders
from packager.merge.plain.targets import PREFIX
from packager.model.adapter import Adapter
from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch


@dataclass
class Skeleton:
    """A tuned model without the base's weights.

    Attributes:
        peft_model: PEFT's model around it.
        config: PEFT's configuration of the adapter.
        empties: the base's parameters and buffers as they are in `peft_model`, without values: the
            names that each has in the base's model, by its identity.
        unread: the layers' own parameters, without values too, by their identity: the file's
            values are read when their layer is merged.
        is_rebuilt: whether a layer has to be built again on its real weight (`must_be_rebuilt`).
        rows: the size of the vocabulary, if the adapter's training has changed it.
        overrides: the file's values for the base's own parameters (biases, resized embeddings), by
            name; `load_values` adds them, and what follows.
        adapter: the adapter's values by their keys in `peft_model`.
        key_of: the key of each of `unread`, by its identity.
        notes: what the user should know of how the adapter was read.
    """

    peft_model: Any
    config: Any
    empties: dict[int, tuple[str, ...]]
    unread: dict[int, torch.Tensor]
    is_rebuilt: bool
    rows: int | None = None
    overrides: dict[str, torch.Tensor] = field(default_factory=dict)
    adapter: dict[str, LazyTensor | torch.Tensor] = field(default_factory=dict)
    key_of: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_factored(self) -> bool:
        """Whether PEFT computes a factorization of the base's weights again."""
        return self.is_rebuilt and self.config.peft_type.value not in ("BOFT", "SUPERTUNING")

    def values_of(self, module: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapter's values for a module, by their keys within it; each call reads them."""
        stem = f"{PREFIX}{module}."
        for key, value in self.adapter.items():
            if key.startswith(stem):
                yield key.removeprefix(stem), as_tensor(value)

    @property
    def held_bytes(self) -> int:
        """How much of the base and the adapter stays in memory with this object."""
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
    """The base's model with PEFT's layers for an adapter in it; `load_values` gives them values.

    Args:
        layout: of the base; it takes the size of the adapter's vocabulary.
        adapter: of its weights, only the header is read.

    Raises:
        UnsupportedError: with PEFT's reason, if it does not take this adapter on this model.
        BaseMismatchError: if the base lacks targeted modules, or has another vocabulary.
    """
    model = build_model(layout.config)
    rows = _resized_rows(model, adapter.weights)
    if rows is not None:
        layout.resize(rows)
        resize(model, rows)
    empties = _empty(model, layout)
    with warnings.catch_warnings():
        # What PEFT only warns of is an error here, or ftpack says it in its own words.
        warnings.simplefilter("ignore")
        return _inject(model, adapter, empties, rows)


def empty_model(layout: Layout) -> Any:
    """The base's model, its weights zeros that take no memory."""
    model = build_model(layout.config)
    _empty(model, layout)
    return model


def _resized_rows(model: Any, weights: TensorFile) -> int | None:
    """The rows of the embeddings that PEFT saved with the adapter, if they are not the base's.

    Raises:
        BaseMismatchError: if the file lacks the rows of one side, which would be random.
    """
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules = [module for module in modules if module is not None]
    rows_of: dict[str, int | None] = {}
    covers_both = False
    for module in modules:
        name = next(name for name, item in model.named_modules() if item is module)
        whole, wrapped = f"{PREFIX}{name}.weight", f"{PREFIX}{name}.base_layer.weight"
        key = next((key for key in (whole, wrapped) if key in weights.tensors), None)
        # Under a tuned layer it is the base's own matrix, which a tied head shares.
        covers_both |= key == wrapped and module.weight is modules[0].weight is modules[-1].weight
        rows_of[name] = None if key is None else weights.tensors[key].shape[0]
    sizes = {rows for rows in rows_of.values() if rows is not None}
    own_rows = modules[0].weight.shape[0]
    if sizes <= {own_rows}:
        return None
    if len(sizes) > 1 or (None in rows_of.values() and not covers_both):
        held = ", ".join(f"{name}: {rows or 'none'}" for name, rows in rows_of.items())
        raise BaseMismatchError(
            f"{weights.path} has embeddings for a vocabulary of {max(sizes)}, the base one of "
            f"{own_rows}, and the adapter does not hold the rows of both sides ({held}).",
            next_step="Save the adapter again with save_embedding_layers=True, or name the base "
            "with the resized vocabulary with --base PATH.",
        )
    return sizes.pop()


def _empty(model: Any, layout: Layout) -> dict[int, tuple[str, ...]]:
    """Replace the tensors of a model on the meta device by zeros that take no memory.

    They cannot stay on the meta device: PEFT would put its own layers there too, and lose what it
    computes from seeds.

    Returns:
        The names of each in the model, by its identity.
    """
    import torch

    empty_of: dict[int, torch.Tensor] = {}
    names: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():
        stem = f"{module_name}." if module_name else ""
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None:
                continue
            if name in module._non_persistent_buffers_set:
                # No file holds it, and merging does not use it: if it did, NaN would show.
                module._buffers[name] = torch.full_like(
                    value, float("nan") if value.is_floating_point() else 0, device="cpu"
                )
                continue
            is_parameter = name in module._parameters
            if id(value) not in empty_of:
                zeros = torch.zeros((), dtype=layout.dtype(stem + name)).expand(value.shape)
                empty_of[id(value)] = (
                    torch.nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros
                )
            empty = empty_of[id(value)]
            (module._parameters if is_parameter else module._buffers)[name] = empty
            names.setdefault(id(empty), []).append(stem + name)
    model._ftpack_empties = list(empty_of.values())  # ids stay theirs while these live
    return {key: tuple(value) for key, value in names.items()}


def _inject(
    model: Any, adapter: Adapter, empties: dict[int, tuple[str, ...]], rows: int | None
) -> Skeleton:
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    config = read_peft_config(adapter)
    is_rebuilt = must_be_rebuilt(config)
    neutral = copy.deepcopy(config)
    if is_rebuilt and config.peft_type.value == "LORA":
        neutral.init_lora_weights = True
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    unread: dict[int, torch.Tensor] = {}
    is_on_stacks = is_stacked(adapter)
    as_stacks = targeted_as_stacks(neutral, model) if is_on_stacks else nullcontext()
    try:
        with placeholders(config, empties, adapter.weights, unread), as_stacks:
            peft_model = model_class(model, neutral, ADAPTER_NAME)
    except FtpackError:
        raise
    # Each of its methods fails in its own way on what it does not take.
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
    return Skeleton(peft_model, neutral, empties, unread, is_rebuilt, rows)


def _require_biases(folder: Path, peft_model: Any) -> None:
    """Refuse a trained bias where the base has none to add it to."""
    for name, layer in peft_model.base_model.model.named_modules():
        has_bias = getattr(layer, "lora_bias", {}).get(ADAPTER_NAME) or hasattr(layer, "beft_bias")
        if has_bias and getattr(layer.get_base_layer(), "bias", None) is None:
            raise UnsupportedError(
                f"{folder} has a trained bias for {name}, and the base has no bias there to add it "
                "to.",
                next_step="Train without `lora_bias`, or on modules that have a bias: a merged "
                "model has no place for it.",
            )
