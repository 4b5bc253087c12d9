"""An adapter's values, given by PEFT to its layers, with every tensor held to account."""

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
from packager.merge.peft.experts import is_stacked, restacked
from packager.merge.peft.layout import Layout
from packager.merge.peft.lazy_tensor import StoredTensor, loaded, stored
from packager.merge.peft.peft_config import ADAPTER_NAME
from packager.merge.peft.placeholders import is_shaped_by_base, is_shared
from packager.merge.peft.skeleton import Skeleton
from packager.merge.plain.targets import PREFIX
from packager.merge.unused import require_none_left
from packager.model.adapter import Adapter
from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch


def load_adapter(skeleton: Skeleton, layout: Layout, adapter: Adapter) -> None:
    """Let PEFT rename the adapter's tensors and say where each of them belongs.

    What belongs to one layer stays in the file; what PEFT computes with, or keeps for all of them,
    is read.

    Args:
        skeleton: gets the values, and the keys of `unread`.
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
        # PEFT finds nothing, and would leave an adapter of transformers 4 unused.
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
    """Load a file, its names changed first; gives PEFT's keys that it has nothing for.

    What PEFT's `load_adapter` does, without reading the file as a whole.
    """
    peft_model = skeleton.peft_model
    load_state_dict = peft_model.load_state_dict
    config, weights = adapter.config.raw, adapter.weights

    def take(state: dict[str, Any], strict: bool = False, **_: object) -> Any:
        if is_stacked(config, weights.tensors):
            state, skeleton.notes = restacked(skeleton.root, state, config, ADAPTER_NAME)
        held = _sort(skeleton, state, adapter.folder)
        result = load_state_dict(held, strict=False)
        left = [key for key in result.missing_keys if key not in skeleton.adapter]
        result.missing_keys[:] = left
        return result

    state = {_renamed(name, key_mapping): stored(weights, name) for name in weights.tensors}
    peft_model.load_state_dict = take
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks here say it
            missing = _hand_over(peft_model, state)
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


def _hand_over(peft_model: Any, state: dict[str, StoredTensor]) -> list[str]:
    """Let PEFT find the keys in its model for those in the file; gives the missing ones."""
    from peft import set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(peft_model, state, ADAPTER_NAME)
    except (AttributeError, TypeError):
        # PEFT computes with the values of some (experts of transformers 4, VB-LoRA, SHiRA).
        values = {key: value.load() for key, value in state.items()}
        result = set_peft_model_state_dict(peft_model, values, ADAPTER_NAME)
    return list(result.missing_keys)


def _renamed(name: str, key_mapping: Mapping[str, str]) -> str:
    """A name in the file as `load_peft_weights` of PEFT changes it: the first pattern that fits."""
    plain = name.removeprefix(PREFIX)
    stem = name.removesuffix(plain)
    for pattern, replacement in key_mapping.items():
        changed, count = re.subn(pattern, replacement, plain)
        if count:
            return stem + changed
    return name


def _sort(skeleton: Skeleton, state: Mapping[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Tell the adapter's values from those for the base's own parameters; check the shapes.

    Gives those for parameters that are no longer empty, which PEFT's layers keep.
    """
    held = {}
    known = skeleton.peft_model.state_dict(keep_vars=True)
    left = sorted(key for key in state if key not in known and not _is_repeated(key, state))
    require_none_left(folder, list(map(_as_saved, left)), {_as_saved(key) for key in known})
    whole = [
        f"{key} ({value.dtype})"
        for key, value in state.items()
        if key in known and known[key].is_floating_point() and not value.dtype.is_floating_point
    ]
    if whole:
        raise AdapterMismatchError(
            f"{folder} holds {len(whole)} tensors of whole numbers, where training has others: "
            f"{listed(whole)}.",
            next_step=SAVE_AGAIN,
        )
    differing = []
    for key, value in state.items():
        place = known.get(key)
        if place is None:
            continue
        if tuple(place.shape) != tuple(value.shape) and not is_shaped_by_base(skeleton.config):
            differing.append(
                f"{key.removeprefix(PREFIX)}: {list(value.shape)} found, {list(place.shape)} fits"
            )
        names = skeleton.empties.get(id(place))
        if names is not None:
            skeleton.overrides.update(dict.fromkeys(names, loaded(value)))
            continue
        skeleton.adapter[key] = value
        if id(place) in skeleton.unread:
            skeleton.key_of[id(place)] = key
        else:
            held[key] = loaded(value)
    if differing:
        raise BaseMismatchError(
            f"Adapter and base do not fit: {len(differing)} shapes differ: "
            f"{listed(differing, '; ')}.",
            next_step=NAME_BASE,
        )
    return held


def _as_saved(key: str) -> str:
    """PEFT's key for a value without the adapter's name, which it puts there on loading."""
    return re.sub(rf"\.{ADAPTER_NAME}(?=\.|$)", "", key, count=1)


def _is_repeated(key: str, state: Mapping[str, Any]) -> bool:
    """Whether PEFT has saved a whole module twice, as it does where the vocabulary was resized."""
    import torch

    other = state.get(key.replace(".modules_to_save.", f".modules_to_save.{ADAPTER_NAME}."))
    if other is None or ".modules_to_save." not in key:
        return False
    return torch.equal(loaded(other), loaded(state[key]))


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
    """The base's biases that were trained must be in the file: PEFT would keep the base's."""
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
