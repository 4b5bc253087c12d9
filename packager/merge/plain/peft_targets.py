"""Which tensors a LoRA changes, and how: PEFT's own word, from its layers on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packager.errors import AdapterMismatchError, BaseMismatchError, listed
from packager.merge.peft.layout import build_model, tied_parameters
from packager.merge.peft.peft_config import read_peft_config
from packager.merge.plain.targets import PREFIX, LoraTarget
from packager.merge.unused import require_none_left
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo

_ADAPTER = "default"


class NotLinearError(Exception):
    """A targeted module is no linear layer that the base holds by its name, for itself alone."""


def targets_by_peft(
    base: Checkpoint, folder: Path, found: Mapping[str, TensorInfo]
) -> dict[str, LoraTarget]:
    """Build the base's modules without weights, let PEFT inject the adapter, and read its layers.

    Args:
        base: the checkpoint that the adapter was trained on.
        folder: the adapter's folder (for its `adapter_config.json`).
        found: the adapter's tensors.

    Returns:
        What is added to each tensor of the base, by its name.

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or targeted modules
            that have none.
        BaseMismatchError: listing the shapes that differ.
        UnsupportedError: if transformers does not know the base's architecture.
        NotLinearError: if there is more to merge than a product of two matrices.
    """
    model = build_model(base.config)
    prefix = f"{model.base_model_prefix}."
    tied = tied_parameters(model)
    layers: dict[str, Any] = {}
    targets: dict[str, LoraTarget] = {}
    for module, layer in _inject(model, folder).items():
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
            scaling=layer.scaling[_ADAPTER],
            is_transposed=layer.fan_in_fan_out,
        )
    if any(name not in base.tensors for name in targets):
        raise NotLinearError
    expected = {name for item in targets.values() for name in (item.a_name, item.b_name)}
    _require_all_there(folder, found, expected)
    _require_shapes(base, found, targets, layers)
    return targets


def _require_shapes(
    base: Checkpoint,
    found: Mapping[str, TensorInfo],
    targets: Mapping[str, LoraTarget],
    layers: Mapping[str, Any],
) -> None:
    """Hold each matrix against the layer that PEFT made for it, and that against the base."""
    differing = []
    for name, item in targets.items():
        layer = layers[name]
        pairs = (
            (name, layer.get_base_layer().weight, base.tensors[name]),
            (item.a_name, layer.lora_A[_ADAPTER].weight, found[item.a_name]),
            (item.b_name, layer.lora_B[_ADAPTER].weight, found[item.b_name]),
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
            next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
        )


def _inject(model: Any, folder: Path) -> dict[str, Any]:
    """Put PEFT's layers into a model on the meta device: which modules they are is PEFT's word."""
    from peft import PeftModel
    from peft.tuners.lora import Linear

    config = read_peft_config(folder)
    # The values come from the file, so that no initialisation needs to see the base.
    config.init_lora_weights = True
    try:
        peft_model = PeftModel(model, config, _ADAPTER)
    # Patterns and names of any kind are looked for in the base's.
    except Exception as error:
        raise BaseMismatchError(
            f"The targets of {folder / 'adapter_config.json'} do not fit the base: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}",
            next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
        ) from error
    _require_every_target(folder, config, peft_model)
    tuned: dict[str, Any] = {}
    for module, layer in peft_model.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if type(layer) is not Linear:
            raise NotLinearError(module)
        tuned[module] = layer
    return tuned


def _require_every_target(folder: Path, config: Any, peft_model: Any) -> None:
    """PEFT only minds when none of the targets is found; a typo in one of them is an error too."""
    if not isinstance(config.target_modules, set | list):
        return
    modules = peft_model.base_model.targeted_module_names
    missing = [
        target
        for target in sorted(config.target_modules)
        if not any(module == target or module.endswith(f".{target}") for module in modules)
    ]
    if missing:
        raise BaseMismatchError(
            f"{folder / 'adapter_config.json'} targets modules that the base does not have: "
            f"{listed(missing)}.",
            next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
        )


def _require_all_there(folder: Path, found: Mapping[str, TensorInfo], expected: set[str]) -> None:
    """Every tensor of the file is expected, and every expected one is in the file."""
    left = [name for name in found if name not in expected]
    absent = sorted(expected - set(found))
    require_none_left(folder, left, expected)
    if absent:
        raise AdapterMismatchError(
            f"{folder} has no tensors for {len(absent)} matrices of targeted modules: "
            f"{listed(absent)}.",
            next_step="Save the adapter again with PEFT's save_pretrained, or check --base.",
        )
