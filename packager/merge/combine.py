"""Several LoRAs, or several IA3s, combined into one by PEFT's `add_weighted_adapter`."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import (
    AdapterMismatchError,
    FtpackError,
    UnsupportedError,
    UsageError,
    first_line,
    listed,
)
from packager.files import read_json
from packager.merge.merged import MergedCheckpoint
from packager.merge.peft.layout import Layout
from packager.merge.peft.peft_config import read_peft_config
from packager.merge.peft.peft_merged import PeftMerged
from packager.merge.peft.skeleton import empty_model
from packager.merge.plain.lora import Merged, delta_of
from packager.merge.plain.peft_targets import NotLinearError
from packager.merge.plain.targets import LoraTarget
from packager.merge.route import is_plain_lora, open_merged
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorFile, open_tensor_file

if TYPE_CHECKING:
    import torch

# PEFT's `combination_type`s, and which of them prune.
METHODS = (
    "svd", "linear", "cat", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd",
    "dare_linear_svd", "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
_PRUNING = ("ties", "dare", "magnitude")
_NAME = "combined"
_IN_TURN = "Leave --combine away: the adapters are then merged one after another."
_OR_IN_TURN = "Or leave --combine away: the adapters are then merged one after another."


@dataclass(frozen=True)
class Combination:
    """How several LoRAs become one.

    Attributes:
        method: PEFT's `combination_type`.
        weights: one for each adapter.
        density: the part of the values that is kept; only for methods that prune.
        seed: torch's, set before a method that prunes at random.
    """

    method: str
    weights: tuple[float, ...]
    density: float | None
    seed: int

    def __str__(self) -> str:
        """In words, for the manifest."""
        text = f"{self.method}, weights {', '.join(f'{weight:g}' for weight in self.weights)}"
        if self.density is not None:
            text += f", density {self.density:g}"
        return text + (f", seed {self.seed}" if self.method.startswith("dare") else "")


def parse_combination(
    method: str, weights: Sequence[float], density: float | None, seed: int, adapters: int
) -> Combination:
    """A combination for so many adapters, its values checked.

    Raises:
        UsageError: naming the value that is wrong, and those that are allowed.
    """
    if method not in METHODS:
        raise UsageError(
            f"--combine {method!r} is none of PEFT's ways: {', '.join(METHODS)}.",
            next_step="Choose one of these, or leave --combine away to merge one after another.",
        )
    if adapters < 2:
        raise UsageError(
            f"--combine {method}: there is {adapters} adapter, and nothing to combine it with.",
            next_step="Name the others with --adapter PATH.",
        )
    if weights and len(weights) != adapters:
        raise UsageError(
            f"--weight is given {len(weights)} times for {adapters} adapters.",
            next_step="Give one for each, in the order of the adapters, or none for 1 each.",
        )
    wrong = [weight for weight in weights if not math.isfinite(weight)]
    if wrong:
        raise UsageError(
            f"--weight {wrong[0]} is no finite number.", next_step="Take one such as 0.5."
        )
    is_pruning = method.startswith(_PRUNING)
    if is_pruning and (density is None or not 0 < density <= 1):
        raise UsageError(
            f"--combine {method} keeps a part of the values, and --density is {density}.",
            next_step="Give --density a value above 0 and up to 1, such as 0.5.",
        )
    if density is not None and not is_pruning:
        raise UsageError(
            f"--density is given, and --combine {method} prunes nothing.",
            next_step="Leave it away, or choose ties, dare_linear, dare_ties or magnitude_prune.",
        )
    return Combination(method, tuple(weights) or (1.0,) * adapters, density, seed)


class CombinedAdapter:
    """An adapter that PEFT has made of several, in a folder that lives as long as this object.

    The several are plain LoRAs, or IA3s that tune the same modules.

    The result depends on the adapters alone: PEFT makes it in a model whose weights take no memory.

    Args:
        base: the checkpoint that they were trained on.
        adapters: their folders and tensor files.
        combination: how; with a weight for each.

    Raises:
        UnsupportedError: naming an adapter that is neither, or that PEFT would scale wrongly.
        UsageError: if the weights of IA3s do not sum up to 1.
        AdapterMismatchError: with PEFT's reason (ranks that differ), or naming what does not fit.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapters: Sequence[tuple[Path, TensorFile]],
        combination: Combination,
    ) -> None:
        self.is_ia3 = all(_is_ia3(folder) for folder, _ in adapters)
        if self.is_ia3:
            _require_mean(combination)
            _require_same_modules(adapters)
        else:
            _require_plain_scaling(adapters[0][0])
            for folder, weights in adapters:
                _require_plain(base, folder, weights)
        self._scratch = tempfile.TemporaryDirectory(prefix="ftpack-")
        folders = [folder for folder, _ in adapters]
        _combine(base, folders, combination, Path(self._scratch.name), self.is_ia3)
        self.folder = Path(self._scratch.name) / _NAME
        self.weights = open_tensor_file(self.folder / "adapter_model.safetensors")


class CombinedMerged(Merged):
    """A base with a combined adapter merged in, which it keeps.

    On a base of 16 bits, `cat` leaves PEFT with an adapter of 16 bits, and it rounds the change of
    that before it adds it; the change of an adapter that comes from a file it computes in fp32.
    """

    def __init__(self, base: Checkpoint, adapter: CombinedAdapter, device: str = "cpu") -> None:
        self._adapter = adapter
        super().__init__(base, adapter.folder, adapter.weights, device)

    def _rounded_delta(
        self, a: torch.Tensor, b: torch.Tensor, target: LoraTarget
    ) -> torch.Tensor | None:
        info = self._adapter.weights.tensors[target.a_name]
        return None if info.dtype == "F32" else delta_of(a, b, target).to(info.torch_dtype)


class CombinedByPeft(PeftMerged):
    """A base with a combined IA3 merged in, which it keeps."""

    def __init__(self, base: Checkpoint, adapter: CombinedAdapter, device: str = "cpu") -> None:
        self._adapter = adapter
        super().__init__(base, adapter.folder, adapter.weights, device)


def open_combined(
    base: Checkpoint, adapter: CombinedAdapter, device: str = "cpu"
) -> MergedCheckpoint:
    """A base with a combined adapter merged in, as `open_merged` opens it with a single one."""
    merged_class = CombinedByPeft if adapter.is_ia3 else CombinedMerged
    return merged_class(base, adapter, device)


def _is_ia3(folder: Path) -> bool:
    return read_json(folder / "adapter_config.json").get("peft_type") == "IA3"


def _require_mean(combination: Combination) -> None:
    """IA3's vectors multiply, from 1: PEFT sums them up, and would scale the base by the rest."""
    if combination.method != "linear":
        raise UnsupportedError(
            f"--combine {combination.method}: PEFT combines IA3 adapters by their sum alone.",
            next_step=f"Use --combine linear. {_OR_IN_TURN}",
        )
    total = math.fsum(combination.weights)
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise UsageError(
            f"The weights of the IA3 adapters sum up to {total:g}: PEFT would scale what they tune "
            "by that.",
            next_step="Give each a --weight, which sum up to 1, such as 0.5 and 0.5. "
            f"{_OR_IN_TURN}",
        )


def _require_same_modules(adapters: Sequence[tuple[Path, TensorFile]]) -> None:
    """Where one of them has no vector, PEFT adds 0 for it, and not the 1 that changes nothing."""
    first, first_weights = adapters[0]
    shapes = {name: info.shape for name, info in first_weights.tensors.items()}
    inner = read_json(first / "adapter_config.json").get("feedforward_modules")
    for folder, weights in adapters:
        others = {name: info.shape for name, info in weights.tensors.items()}
        apart = sorted({name for name, _ in shapes.items() ^ others.items()})
        if read_json(folder / "adapter_config.json").get("feedforward_modules") != inner:
            apart.append("feedforward_modules")
        if any(not name.endswith(".ia3_l") for name in others):
            raise UnsupportedError(
                f"{folder} is more than an IA3 (see adapter_config.json there), and PEFT's "
                "add_weighted_adapter leaves the rest out.",
                next_step=_IN_TURN,
            )
        if apart:
            raise AdapterMismatchError(
                f"{first} and {folder} tune other modules: {listed(apart)}. PEFT would scale the "
                "base's weights down where one of them has no vector.",
                next_step=_IN_TURN,
            )


def _require_plain_scaling(first: Path) -> None:
    """The combined LoRA takes over `use_rslora`, and is scaled by it once more than its parts."""
    if read_json(first / "adapter_config.json").get("use_rslora"):
        raise UnsupportedError(
            f"{first} sets `use_rslora`, and PEFT would scale everything that is combined with it "
            "by the square root of the new rank.",
            next_step=f"Name an adapter without `use_rslora` first. {_OR_IN_TURN}",
        )


def _require_plain(base: Checkpoint, folder: Path, weights: TensorFile) -> None:
    """Hold an adapter against the base, and refuse what PEFT's combination would leave out."""
    try:
        if is_plain_lora(read_json(folder / "adapter_config.json"), weights):
            Merged(base, folder, weights)
            return
    except NotLinearError:
        pass
    else:
        # What does not fit the base is a clearer error than what cannot be combined.
        open_merged(base, folder, weights)
    raise UnsupportedError(
        f"{folder} is more than a LoRA on linear layers (see adapter_config.json there), and "
        "PEFT's add_weighted_adapter combines nothing else but IA3s among themselves.",
        next_step=_IN_TURN,
    )


def _combine(
    base: Checkpoint,
    folders: Sequence[Path],
    combination: Combination,
    scratch: Path,
    is_ia3: bool,
) -> None:
    """Let PEFT load the adapters, combine them, and save the result as `scratch/combined`."""
    import torch
    from peft import PeftModel

    layout = Layout(base.tensors, base.config)
    names = [f"adapter_{number}" for number in range(len(folders))]
    # The seed is for PEFT alone: the caller's random numbers go on as they were.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            model: Any = PeftModel(empty_model(layout), read_peft_config(folders[0]), names[0])
            for name, folder in zip(names, folders, strict=True):
                _require_loaded(
                    folder, model.load_adapter(str(folder), name, torch_device="cpu"), name
                )
            torch.manual_seed(combination.seed)
            how = {"combination_type": combination.method, "density": combination.density}
            model.add_weighted_adapter(
                names, list(combination.weights), _NAME, **({} if is_ia3 else how)
            )
        except FtpackError:
            raise
        except Exception as error:
            raise AdapterMismatchError(
                f"PEFT does not combine {', '.join(map(str, folders))} by "
                f"{combination.method!r}: {first_line(error)}",
                next_step=f"For LoRAs of different ranks use --combine cat or svd. {_OR_IN_TURN}",
            ) from error
        if not is_ia3:
            _require_every_module(model, names, folders)
        model.save_pretrained(scratch, selected_adapters=[_NAME], save_embedding_layers=False)


def _require_every_module(model: Any, names: Sequence[str], folders: Sequence[Path]) -> None:
    """PEFT puts the combined LoRA where the first adapter's settings allow it, and there alone."""
    for name, folder in zip(names, folders, strict=True):
        lost = [
            module
            for module, layer in model.base_model.model.named_modules()
            if name in getattr(layer, "lora_A", ()) and _NAME not in layer.lora_A
        ]
        if lost:
            raise AdapterMismatchError(
                f"PEFT would leave out what {folder} changes in {len(lost)} modules, which the "
                f"settings of {folders[0]} exclude: {listed(lost)}.",
                next_step="Name the adapter with the most layers first (`layers_to_transform`, "
                f"`exclude_modules` in adapter_config.json). {_OR_IN_TURN}",
            )


def _require_loaded(folder: Path, result: Any, name: str) -> None:
    """Every tensor of the file must be in PEFT's layers, and every layer filled."""
    missing = [key for key in result.missing_keys if f".{name}" in key]
    left = [*result.unexpected_keys, *missing]
    if left:
        raise AdapterMismatchError(
            f"PEFT does not find the tensors of {folder} by their names on this base: "
            f"{listed(left)}.",
            next_step=_IN_TURN,
        )
