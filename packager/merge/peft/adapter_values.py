"""An adapter's values, assigned by PEFT to its layers; every tensor must have a place."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import (
    AdapterMismatchError,
    BaseMismatchError,
    FtpackError,
    first_line,
    listed,
)
from packager.merge.finite import load_finite
from packager.merge.next_steps import (
    CHECK_BASE_OR_SAVE_AGAIN,
    NAME_BASE,
    SAVE_AGAIN,
    SAVE_AGAIN_OR_CHECK_BASE,
)
from packager.merge.peft.experts import is_stacked, restack
from packager.merge.peft.layout import Layout
from packager.merge.peft.lazy_tensor import LazyTensor, as_tensor, lazy_tensor
from packager.merge.peft.peft_config import ADAPTER_NAME
from packager.merge.peft.placeholders import is_shaped_by_base, is_shared
from packager.merge.peft.skeleton import Skeleton
from packager.merge.plain.targets import PREFIX
from packager.merge.unused import require_none_unplaced
from packager.model.adapter import Adapter
from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch

    Values = Mapping[str, LazyTensor | torch.Tensor]


def load_values(skeleton: Skeleton, layout: Layout, adapter: Adapter) -> None:
    """Let PEFT rename the adapter's tensors and find the place of each.

    What belongs to one layer stays in the file; what PEFT computes with, or keeps for all layers,
    is read.

    Args:
        skeleton: gets the values, and the keys of its `unread`.
        layout: of the base.
        adapter: whose tensors are loaded.

    Raises:
        AdapterMismatchError: listing tensors that nothing would use, or layers that have none.
        BaseMismatchError: listing the shapes that differ.
        NonFiniteError: naming a tensor with NaN or Inf.
    """
    _check_file(adapter.weights)
    default = getattr(skeleton.root, "_checkpoint_conversion_mapping", {})
    try:
        missing = _load(skeleton, adapter, default)
    except AdapterMismatchError as mismatch:
        # transformers renames by a model's class, PEFT by its `model_type`: for some (Qwen2.5-VL)
        # PEFT finds no renaming, and would leave an adapter of transformers 4 unused.
        try:
            missing = _load(skeleton, adapter, layout.plain_renamings())
        except AdapterMismatchError:
            raise mismatch from None
    _require_trained_biases(skeleton, adapter.weights)
    absent = [key for key in missing if not is_shared(key)]
    if absent:
        raise AdapterMismatchError(
            f"{adapter.weights.path} has no tensors for {len(absent)} parts of targeted modules: "
            f"{listed([key.removeprefix(PREFIX) for key in absent])}.",
            next_step=SAVE_AGAIN_OR_CHECK_BASE,
        )


def _load(skeleton: Skeleton, adapter: Adapter, key_mapping: Mapping[str, str]) -> list[str]:
    """Load a file under changed names; gives PEFT's keys for which the file has no tensor.

    It does what PEFT's `load_adapter` does, without reading the file as a whole.
    """
    peft_model = skeleton.peft_model
    load_state_dict = peft_model.load_state_dict
    weights = adapter.weights

    def take(state: dict[str, Any], strict: bool = False, **_: object) -> Any:
        if is_stacked(adapter):
            restacked = restack(skeleton.root, state, adapter.config)
            state, skeleton.notes = restacked.tensors, restacked.notes
        held = _sort(skeleton, state, adapter.folder)
        result = load_state_dict(held, strict=False)
        absent = [key for key in result.missing_keys if key not in skeleton.adapter]
        result.missing_keys[:] = absent
        return result

    state = {_renamed(name, key_mapping): lazy_tensor(weights, name) for name in weights.tensors}
    peft_model.load_state_dict = take
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks here are errors
            missing = _assign(peft_model, state)
            skeleton.tuner._cast_adapter_dtype(
                adapter_name=ADAPTER_NAME, autocast_adapter_dtype=True
            )
            peft_model.eval()
    except FtpackError:
        raise
    except Exception as error:
        raise AdapterMismatchError(
            f"PEFT cannot put the tensors of {adapter.folder} into this base: {first_line(error)}",
            next_step=CHECK_BASE_OR_SAVE_AGAIN,
        ) from error
    finally:
        del peft_model.load_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[skeleton.config.peft_type]
    return [key for key in missing if prefix in key and ADAPTER_NAME in key]


def _assign(peft_model: Any, state: dict[str, LazyTensor]) -> list[str]:
    """Let PEFT find the keys of its model for those in the file; gives the missing ones."""
    from peft import set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(peft_model, state, ADAPTER_NAME)
    except (AttributeError, TypeError):
        # PEFT computes with the values of some (experts of transformers 4, VB-LoRA, SHiRA).
        values = {key: value.load() for key, value in state.items()}
        result = set_peft_model_state_dict(peft_model, values, ADAPTER_NAME)
    return list(result.missing_keys)


def _renamed(name: str, key_mapping: Mapping[str, str]) -> str:
    """A name in the file, changed by the first pattern that fits, as PEFT's `load_peft_weights`."""
    plain = name.removeprefix(PREFIX)
    stem = name.removesuffix(plain)
    for pattern, replacement in key_mapping.items():
        changed, count = re.subn(pattern, replacement, plain)
        if count:
            return stem + changed
    return name


def _sort(skeleton: Skeleton, state: Values, folder: Path) -> dict[str, torch.Tensor]:
    """Sort the file's values into the skeleton: the adapter's, and those for the base's parameters.

    Returns:
        The values for parameters that are not empty: PEFT's layers keep them.
    """
    known: dict[str, torch.Tensor] = skeleton.peft_model.state_dict(keep_vars=True)
    unplaced = sorted(key for key in state if key not in known and not _is_repeated(key, state))
    require_none_unplaced(folder, list(map(_as_saved, unplaced)), {_as_saved(key) for key in known})
    places = {key: known[key] for key in state if key in known}
    _require_floats(places, state, folder)
    if not is_shaped_by_base(skeleton.config):
        _require_shapes(places, state)
    held = {}
    for key, place in places.items():
        value = state[key]
        names = skeleton.empties.get(id(place))
        if names is not None:
            skeleton.overrides.update(dict.fromkeys(names, as_tensor(value)))
            continue
        skeleton.adapter[key] = value
        if id(place) in skeleton.unread:
            skeleton.key_of[id(place)] = key
        else:
            held[key] = as_tensor(value)
    return held


def _require_floats(places: Mapping[str, torch.Tensor], state: Values, folder: Path) -> None:
    integers = [
        f"{key} ({state[key].dtype})"
        for key, place in places.items()
        if place.is_floating_point() and not state[key].dtype.is_floating_point
    ]
    if integers:
        raise AdapterMismatchError(
            f"{folder} holds {len(integers)} integer tensors where training produces floating-"
            f"point ones: {listed(integers)}.",
            next_step=SAVE_AGAIN,
        )


def _require_shapes(places: Mapping[str, torch.Tensor], state: Values) -> None:
    differing = [
        f"{key.removeprefix(PREFIX)}: {list(state[key].shape)} found, {list(place.shape)} fits"
        for key, place in places.items()
        if tuple(place.shape) != tuple(state[key].shape)
    ]
    if differing:
        raise BaseMismatchError(
            f"Adapter and base do not fit: {len(differing)} shapes differ: "
            f"{listed(differing, '; ')}.",
            next_step=NAME_BASE,
        )


def _as_saved(key: str) -> str:
    """PEFT's key for a value without the adapter's name, which PEFT adds on loading."""
    return re.sub(rf"\.{ADAPTER_NAME}(?=\.|$)", "", key, count=1)


def _is_repeated(key: str, state: Values) -> bool:
    """Whether PEFT saved a whole module twice, as it does after the vocabulary was resized."""
    import torch

    other = state.get(key.replace(".modules_to_save.", f".modules_to_save.{ADAPTER_NAME}."))
    if other is None or ".modules_to_save." not in key:
        return False
    return torch.equal(as_tensor(other), as_tensor(state[key]))


def _check_file(weights: TensorFile) -> None:
    """Refuse NaN and Inf, and two names for one place: PEFT would take either tensor."""
    plain: dict[str, str] = {}
    for name in weights.tensors:
        other = plain.setdefault(re.sub(rf"\.{ADAPTER_NAME}(?=\.|$)", "", name), name)
        if other != name:
            raise AdapterMismatchError(
                f"{weights.path} holds both {other!r} and {name!r}, which are the same to PEFT.",
                next_step=SAVE_AGAIN,
            )
        load_finite(weights, name)


def _require_trained_biases(skeleton: Skeleton, weights: TensorFile) -> None:
    """Require that the trained biases are in the file: PEFT would keep the base's."""
    trained = getattr(skeleton.config, "bias", "none")
    if trained not in ("all", "lora_only"):
        return
    own = {
        id(parameter)
        for layer in skeleton.root.modules()
        if trained == "all" or hasattr(layer, "base_layer")
        for name, parameter in layer.named_parameters()
        if name.rpartition(".")[2] == "bias"
    }
    names = [names[0] for key, names in skeleton.empties.items() if key in own]
    absent = [name for name in names if name not in skeleton.overrides]
    if absent:
        raise AdapterMismatchError(
            f"adapter_config.json says `bias` {trained!r}, and {weights.path} has no tensors for "
            f"{len(absent)} of {len(names)} biases: {listed(absent)}.",
            next_step=SAVE_AGAIN,
        )
