"""Which tensors a LoRA changes, and how: by PEFT's own layers, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packager.errors import AdapterMismatchError, BaseMismatchError, first_line, listed
from packager.merge.next_steps import NAME_BASE, SAVE_AGAIN_OR_CHECK_BASE
from packager.merge.peft.layout import build_model, tied_parameters
from packager.merge.peft.peft_config import ADAPTER_NAME, read_peft_config, require_every_target
from packager.merge.plain.targets import PREFIX, LoraTarget
from packager.merge.unused import require_none_unplaced
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo


class NotLinearError(Exception):
    """A targeted module is not a linear layer that the base holds, untied, under its name."""


def targets_by_peft(base: Checkpoint, adapter: Adapter) -> dict[str, LoraTarget]:
    """What an adapter adds to each tensor of the base, by its name, read from PEFT's layers.

    PEFT injects them into the base's modules, which are built without weights.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: a LoRA.

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or targeted modules
            that have none.
        BaseMismatchError: listing the shapes that differ.
        UnsupportedError: if transformers does not know the base's architecture.
        NotLinearError: if merging takes more than adding a product of two matrices.
    """
    model = build_model(base.config)
    prefix = f"{model.base_model_prefix}."
    tied = tied_parameters(model)
    layers: dict[str, Any] = {}
    targets: dict[str, LoraTarget] = {}
    for module, layer in _inject(model, adapter).items():
        # Checkpoints saved from the bare model (GPT-2 on the Hub) lack the head's prefix.
        name = f"{module}.weight"
        if name in tied:
            raise NotLinearError(module)
        name = name if name in base.tensors else name.removeprefix(prefix)
        stem = f"{PREFIX}{module}"
        layers[name] = layer
        targets[name] = LoraTarget(
            a_name=f"{stem}.lora_A.weight",
            b_name=f"{stem}.lora_B.weight",
            scaling=layer.scaling[ADAPTER_NAME],
            is_transposed=layer.fan_in_fan_out,
        )
    if any(name not in base.tensors for name in targets):
        raise NotLinearError
    expected = {name for item in targets.values() for name in (item.a_name, item.b_name)}
    _require_all_there(adapter, expected)
    _require_shapes(base, adapter.weights.tensors, targets, layers)
    return targets


def _require_shapes(
    base: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    targets: Mapping[str, LoraTarget],
    layers: Mapping[str, Any],
) -> None:
    """Compare each matrix with the layer that PEFT made for it, and that with the base."""
    differing = []
    for name, item in targets.items():
        layer = layers[name]
        pairs = (
            (name, layer.get_base_layer().weight, base.tensors[name]),
            (item.a_name, layer.lora_A[ADAPTER_NAME].weight, tensors[item.a_name]),
            (item.b_name, layer.lora_B[ADAPTER_NAME].weight, tensors[item.b_name]),
        )
        differing += [
            f"{label.removeprefix(PREFIX)}: {list(info.shape)} found, {list(want.shape)} fits"
            for label, want, info in pairs
            if tuple(want.shape) != info.shape
        ]
    if differing:
        raise BaseMismatchError(
            f"Adapter and base do not fit: {len(differing)} shapes differ: "
            f"{listed(differing, '; ')}.",
            next_step=NAME_BASE,
        )


def _inject(model: Any, adapter: Adapter) -> dict[str, Any]:
    """The layers that PEFT puts into a model on the meta device, by their modules' names."""
    from peft import PeftModel
    from peft.tuners.lora import Linear

    config = read_peft_config(adapter)
    # The values come from the file, so no initialisation has to read the base.
    config.init_lora_weights = True
    try:
        peft_model = PeftModel(model, config, ADAPTER_NAME)
    # Matching patterns and names against the base can raise any error.
    except Exception as error:
        raise BaseMismatchError(
            f"The targets of {adapter.config.path} do not fit the base: {first_line(error)}",
            next_step=NAME_BASE,
        ) from error
    require_every_target(adapter, config, peft_model)
    tuned: dict[str, Any] = {}
    for module, layer in peft_model.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if type(layer) is not Linear:
            raise NotLinearError(module)
        tuned[module] = layer
    return tuned


def _require_all_there(adapter: Adapter, expected: set[str]) -> None:
    """Require exactly the expected tensors in the adapter's file."""
    tensors = adapter.weights.tensors
    unplaced = [name for name in tensors if name not in expected]
    absent = sorted(expected - set(tensors))
    require_none_unplaced(adapter.folder, unplaced, expected)
    if absent:
        raise AdapterMismatchError(
            f"{adapter.folder} has no tensors for {len(absent)} matrices of targeted modules: "
            f"{listed(absent)}.",
            next_step=SAVE_AGAIN_OR_CHECK_BASE,
        )
