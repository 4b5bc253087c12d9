"""An adapter's values, loaded by PEFT into its layers, with every tensor held to account."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packager.checkpoint import TensorFile
from packager.errors import (
    AdapterMismatchError,
    BaseMismatchError,
    FtpackError,
    NonFiniteError,
)
from packager.merge.layout import Layout
from packager.merge.skeleton import ADAPTER, Skeleton, first_line
from packager.merge.targets import PREFIX, listed

_CHECK_BASE = "Name the base that was fine-tuned with --base PATH_OR_ID."
_SAVE_AGAIN = "Check --base; or save the adapter again with PEFT's save_pretrained."


def load_adapter(skeleton: Skeleton, layout: Layout, folder: Path, weights: TensorFile) -> None:
    """Let PEFT rename and load the adapter's tensors, and see where each of them went.

    Args:
        skeleton: gets the values.
        layout: of the base.
        folder: the adapter's.
        weights: its tensor file.

    Raises:
        AdapterMismatchError: listing tensors that nothing would use, or layers that have none.
        BaseMismatchError: listing the shapes that differ.
        NonFiniteError: naming a tensor with NaN or Inf.
    """
    _check_file(weights)
    default = getattr(skeleton.root, "_checkpoint_conversion_mapping", {})
    try:
        missing = _load(skeleton, folder, default)
    except AdapterMismatchError as mismatch:
        # transformers renames by a model's class, PEFT by its `model_type`: for some (Qwen2.5-VL)
        # PEFT finds nothing, and would leave an adapter of transformers 4 unused.
        try:
            missing = _load(skeleton, folder, layout.plain_renamings())
        except AdapterMismatchError:
            raise mismatch from None
    _require_trained_biases(skeleton, weights)
    absent = [key for key in missing if not _is_shared(key)]
    if absent:
        raise AdapterMismatchError(
            f"{weights.path} has no tensors for {len(absent)} parts of targeted modules: "
            f"{listed([key.removeprefix(PREFIX) for key in absent])}.",
            next_step="Save the adapter again with PEFT's save_pretrained, or check --base.",
        )


def _load(skeleton: Skeleton, folder: Path, key_mapping: Mapping[str, str]) -> list[str]:
    """Load a file, its names changed first; gives PEFT's keys that it has nothing for."""
    peft_model = skeleton.peft_model
    load_state_dict = peft_model.load_state_dict

    def take(state: dict[str, Any], strict: bool = False, **_: object) -> Any:
        _sort(skeleton, state, folder)
        return load_state_dict(skeleton.adapter, strict=False)

    peft_model.load_state_dict = take
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks here say it
            result = peft_model.load_adapter(
                str(folder), ADAPTER, torch_device="cpu", key_mapping=dict(key_mapping)
            )
    except FtpackError:
        raise
    except Exception as error:
        raise AdapterMismatchError(
            f"PEFT cannot put the tensors of {folder} into this base: {first_line(error)}",
            next_step=_SAVE_AGAIN,
        ) from error
    finally:
        del peft_model.load_state_dict
    return list(result.missing_keys)


def _sort(skeleton: Skeleton, state: Mapping[str, Any], folder: Path) -> None:
    """Tell the adapter's values from those for the base's own parameters; check the shapes."""
    known = skeleton.peft_model.state_dict(keep_vars=True)
    left = sorted(key for key in state if key not in known and not _is_repeated(key, state))
    if left:
        raise AdapterMismatchError(
            f"{len(left)} adapter tensors in {folder} belong to no tuned module of this base"
            f"{_cause(left)}: {listed(left)}.",
            next_step=_SAVE_AGAIN,
        )
    whole = [
        f"{key} ({value.dtype})"
        for key, value in state.items()
        if key in known and known[key].is_floating_point() and not value.is_floating_point()
    ]
    if whole:
        raise AdapterMismatchError(
            f"{folder} holds {len(whole)} tensors of whole numbers, where training has others: "
            f"{listed(whole)}.",
            next_step="Save the adapter again with PEFT's save_pretrained.",
        )
    differing = []
    for key, value in state.items():
        place = known.get(key)
        if place is None:
            continue
        if place.shape != value.shape:
            differing.append(
                f"{key.removeprefix(PREFIX)}: {list(value.shape)} found, {list(place.shape)} fits"
            )
        names = skeleton.empties.get(id(place))
        if names is None:
            skeleton.adapter[key] = value
        else:
            skeleton.overrides.update(dict.fromkeys(names, value))
    if differing:
        raise BaseMismatchError(
            f"Adapter and base do not fit: {len(differing)} shapes differ: "
            f"{listed(differing, '; ')}.",
            next_step=_CHECK_BASE,
        )


def _is_repeated(key: str, state: Mapping[str, Any]) -> bool:
    """Whether PEFT has saved a whole module twice, as it does where the vocabulary was resized."""
    import torch

    loaded = state.get(key.replace(".modules_to_save.", f".modules_to_save.{ADAPTER}."))
    return loaded is not None and ".modules_to_save." in key and torch.equal(loaded, state[key])


def _check_file(weights: TensorFile) -> None:
    """Refuse values that are no numbers, and two names for one place: one would silently win."""
    import torch

    plain: dict[str, str] = {}
    for name in weights.tensors:
        other = plain.setdefault(re.sub(rf"\.{ADAPTER}(?=\.|$)", "", name), name)
        if other != name:
            raise AdapterMismatchError(
                f"{weights.path} holds both {other!r} and {name!r}, which are the same to PEFT.",
                next_step="Save the adapter again with PEFT's save_pretrained.",
            )
        value = weights.load(name)
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFiniteError(
                f"The adapter's tensor {name!r} in {weights.path} has NaN or Inf.",
                next_step="The training run diverged; use an earlier checkpoint.",
            )


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
            next_step="Save the adapter again with PEFT's save_pretrained.",
        )


def _is_shared(key: str) -> bool:
    """What every layer refers to and the file holds once, for the whole model."""
    return any(mark in key for mark in ("vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d."))


def _cause(names: list[str]) -> str:
    """Why names are not as PEFT saves them, where that is known."""
    causes = {
        "_orig_mod.": " (saved from a compiled model)",
        ".module.": " (saved from a wrapped model)",
    }
    return next((text for mark, text in causes.items() if any(mark in n for n in names)), "")
