"""Several LoRAs, or several IA3s, combined into one by PEFT's `add_weighted_adapter`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from packager.errors import (
    AdapterMismatchError,
    FtpackError,
    UnsupportedError,
    UsageError,
    first_line,
    listed,
)
from packager.merge.merge_options import Combination
from packager.merge.merged import Merged
from packager.merge.peft.layout import Layout
from packager.merge.peft.peft_config import read_peft_config
from packager.merge.peft.peft_merged import PeftMerged
from packager.merge.peft.skeleton import empty_model
from packager.merge.plain.lora import LoraMerged
from packager.merge.plain.peft_targets import NotLinearError
from packager.merge.route import is_plain_lora, merge_one
from packager.model.adapter import ADAPTER_CONFIG_NAME, WEIGHT_NAMES, Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.model_file import ModelFile
from packager.model.tensor_file import open_tensor_file

_NAME = "combined"
_IN_TURN = "Omit --combine: the adapters are then merged one after another."
_OR_IN_TURN = "Or omit --combine: the adapters are then merged one after another."


def merge_combined(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    combination: Combination,
    folder: Path,
    device: str,
) -> Merged:
    """A base with several adapters merged in that PEFT has combined into one first.

    The adapters are plain LoRAs, or IA3s that tune the same modules. The combined adapter depends
    on them alone: PEFT makes it in a model whose weights take no memory.

    On a base of 16 bits, `cat` leaves PEFT with an adapter of 16 bits, and PEFT rounds the change
    to them before it adds it; the change of an adapter that comes from a file it computes in fp32.

    Args:
        base: the checkpoint that the adapters were trained on.
        adapters: at least two.
        combination: how they become one.
        folder: an empty folder that must outlive the result: the combined adapter is written there.
        device: where to merge, as torch names it.

    Raises:
        UnsupportedError: naming an adapter that is neither, or that PEFT would scale wrongly.
        UsageError: if the weights of IA3s do not sum to 1.
        AdapterMismatchError: with PEFT's reason (ranks that differ), or naming what does not fit.
    """
    if is_ia3 := _are_ia3s(adapters):
        _require_mean(combination, len(adapters))
        _require_same_modules(adapters)
    else:
        _require_plain_scaling(adapters[0])
        for adapter in adapters:
            _require_plain(base, adapter)
    combined = _combine(base, adapters, combination, folder)
    if is_ia3:
        return PeftMerged(base, combined, device)
    return LoraMerged(base, combined, device, delta_precision="adapter")


def _are_ia3s(adapters: Sequence[Adapter]) -> bool:
    return all(adapter.config.peft_type == "IA3" for adapter in adapters)


def _require_mean(combination: Combination, adapters: int) -> None:
    """Refuse all but a weighted mean of IA3s.

    PEFT sums their factors: weights that do not sum to 1 would scale the base.
    """
    if combination.method != "linear":
        raise UnsupportedError(
            f"--combine {combination.method}: PEFT combines IA3 adapters only by a weighted sum.",
            next_step=f"Use --combine linear. {_OR_IN_TURN}",
        )
    total = math.fsum(combination.weights_for(adapters))
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise UsageError(
            f"The weights of the IA3 adapters sum to {total:g}: PEFT would scale what they tune "
            "by that.",
            next_step="Give each a --weight so that they sum to 1, such as 0.5 and 0.5. "
            f"{_OR_IN_TURN}",
        )


def _require_same_modules(adapters: Sequence[Adapter]) -> None:
    """Refuse IA3s that tune different modules.

    Where one has no vector, PEFT adds 0 for it, and not the factor 1 that changes nothing.
    """
    first = adapters[0]
    shapes = {name: info.shape for name, info in first.weights.tensors.items()}
    inner = first.config.raw.get("feedforward_modules")
    for adapter in adapters:
        others = {name: info.shape for name, info in adapter.weights.tensors.items()}
        differing = sorted({name for name, _ in shapes.items() ^ others.items()})
        if adapter.config.raw.get("feedforward_modules") != inner:
            differing.append("feedforward_modules")
        if any(not name.endswith(".ia3_l") for name in others):
            raise UnsupportedError(
                f"{adapter.folder} is more than an IA3 (see adapter_config.json there), and PEFT's "
                "add_weighted_adapter leaves the rest out.",
                next_step=_IN_TURN,
            )
        if differing:
            raise AdapterMismatchError(
                f"{first.folder} and {adapter.folder} tune different modules: {listed(differing)}. "
                "PEFT would scale the base's weights down where one of them has no vector.",
                next_step=_IN_TURN,
            )


def _require_plain_scaling(first: Adapter) -> None:
    """Refuse an rsLoRA that leads: the combined LoRA takes over `use_rslora`.

    PEFT then scales it once more than its parts.
    """
    if first.config.raw.get("use_rslora"):
        raise UnsupportedError(
            f"{first.folder} sets `use_rslora`, and PEFT would scale everything that is combined "
            "with it by the square root of the new rank.",
            next_step=f"Name an adapter without `use_rslora` first. {_OR_IN_TURN}",
        )


def _require_plain(base: Checkpoint, adapter: Adapter) -> None:
    """Compare an adapter with the base, and refuse what PEFT's combination would leave out."""
    try:
        if is_plain_lora(adapter):
            LoraMerged(base, adapter, "cpu")
            return
    except NotLinearError:
        pass
    else:
        # What does not fit the base is a clearer error than what cannot be combined.
        merge_one(base, adapter, "cpu")
    raise UnsupportedError(
        f"{adapter.folder} is more than a LoRA on linear layers (see adapter_config.json there), "
        "and PEFT's add_weighted_adapter combines only such LoRAs, or IA3s with one another.",
        next_step=_IN_TURN,
    )


def _combine(
    base: Checkpoint, adapters: Sequence[Adapter], combination: Combination, folder: Path
) -> Adapter:
    """The adapter that PEFT makes of several, saved as `folder/combined`."""
    import torch

    layout = Layout(base.tensors, base.config)
    names = [f"adapter_{number}" for number in range(len(adapters))]
    # The seed is for PEFT alone: the caller's random numbers go on as they were.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            model = _load_all(layout, adapters, names)
            _add_combined(model, names, combination, is_ia3=_are_ia3s(adapters))
        except FtpackError:
            raise
        # PEFT raises whatever comes up in adapters that do not fit together.
        except Exception as error:
            raise AdapterMismatchError(
                f"PEFT does not combine {', '.join(str(each.folder) for each in adapters)} by "
                f"{combination.method!r}: {first_line(error)}",
                next_step=f"For LoRAs of different ranks use --combine cat or svd. {_OR_IN_TURN}",
            ) from error
        _require_every_module(model, names, adapters)
        model.save_pretrained(folder, selected_adapters=[_NAME], save_embedding_layers=False)
    return _open_combined(folder / _NAME, adapters[0])


def _load_all(layout: Layout, adapters: Sequence[Adapter], names: Sequence[str]) -> Any:
    """PEFT's model of the base, without weights, with every adapter loaded under its name."""
    from peft import PeftModel

    model: Any = PeftModel(empty_model(layout), read_peft_config(adapters[0]), names[0])
    for name, adapter in zip(names, adapters, strict=True):
        result = model.load_adapter(str(adapter.folder), name, torch_device="cpu")
        missing = [key for key in result.missing_keys if f".{name}" in key]
        unplaced = [*result.unexpected_keys, *missing]
        if unplaced:
            raise AdapterMismatchError(
                f"PEFT does not find the tensors of {adapter.folder} by their names on this base: "
                f"{listed(unplaced)}.",
                next_step=_IN_TURN,
            )
    return model


def _add_combined(
    model: Any, names: Sequence[str], combination: Combination, *, is_ia3: bool
) -> None:
    import torch

    torch.manual_seed(combination.seed)
    weights = list(combination.weights_for(len(names)))
    if is_ia3:  # PEFT has one way for them, and takes no name for it
        model.add_weighted_adapter(list(names), weights, _NAME)
        return
    model.add_weighted_adapter(
        list(names),
        weights,
        _NAME,
        combination_type=combination.method,
        density=combination.density,
    )


def _require_every_module(model: Any, names: Sequence[str], adapters: Sequence[Adapter]) -> None:
    """Refuse an adapter with modules that the first adapter's settings exclude.

    PEFT puts the combined LoRA where these settings allow it, and nowhere else.
    """
    for name, adapter in zip(names, adapters, strict=True):
        lost = [
            module
            for module, layer in model.base_model.model.named_modules()
            if name in getattr(layer, "lora_A", ()) and _NAME not in layer.lora_A
        ]
        if lost:
            raise AdapterMismatchError(
                f"PEFT would leave out what {adapter.folder} changes in {len(lost)} modules, which "
                f"the settings of {adapters[0].folder} exclude: {listed(lost)}.",
                next_step="Name the adapter with the most layers first (`layers_to_transform`, "
                f"`exclude_modules` in adapter_config.json). {_OR_IN_TURN}",
            )


def _open_combined(folder: Path, first: Adapter) -> Adapter:
    file = ModelFile(folder / ADAPTER_CONFIG_NAME)
    rank = file.json.get("r")
    config = replace(
        first.config, file=file, raw=file.json, rank=rank if isinstance(rank, int) else None
    )
    return Adapter(folder, config, open_tensor_file(folder / WEIGHT_NAMES[0]))
