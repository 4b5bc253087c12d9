"""A base with a LoRA adapter merged in, as a checkpoint: PEFT's own layers, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.checkpoint import Checkpoint, TensorFile, TensorInfo
from packager.errors import (
    AdapterMismatchError,
    BaseMismatchError,
    NonFiniteError,
    UnsupportedError,
)

if TYPE_CHECKING:
    import torch
    from peft.tuners.lora import LoraLayer

_PREFIX = "base_model.model."
_ADAPTER = "default"
# Rows compared before and after a merge, to see that it changed anything at all.
_SAMPLED_ROWS = 16
_SHOWN = 6


@dataclass(frozen=True)
class _Tuned:
    """A targeted module: PEFT's layer (on the meta device), and the names of its two matrices."""

    layer: LoraLayer
    a_name: str
    b_name: str


class Merged:
    """The tensors of `base`, those that the adapter targets with its change merged in.

    Each is what PEFT's `merge_and_unload` gives on the same device, byte for byte: the change is
    computed in fp32 by PEFT's layer and added to the weight in place, with one rounding. Only the
    module that is being merged has memory; the rest of the model is on the meta device.

    Args:
        base: the checkpoint that the adapter was trained on.
        folder: the adapter's folder (for its `adapter_config.json`).
        weights: the adapter's tensors.
        device: where to merge, as torch names it (`cpu`, `cuda`, `cuda:1`).

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or targeted modules
            that have none.
        BaseMismatchError: listing the shapes that differ.
        UnsupportedError: if transformers does not know the base's architecture.
    """

    def __init__(
        self, base: Checkpoint, folder: Path, weights: TensorFile, device: str = "cpu"
    ) -> None:
        self._base = base
        self._weights = weights
        self._device = device
        model = _meta_model(base.files["config.json"].parent)
        prefix = f"{model.base_model_prefix}."
        tuned = _inject(model, folder)
        expected = {name: item for item in tuned.values() for name in (item.a_name, item.b_name)}
        _require_all_there(folder, weights.tensors, set(expected))
        self._tuned: dict[str, _Tuned] = {}
        for module, item in tuned.items():
            # Checkpoints saved from the bare model (GPT-2 on the Hub) lack the head's prefix.
            name = f"{module}.weight"
            self._tuned[name if name in base.tensors else name.removeprefix(prefix)] = item
        self._require_shapes()
        self._used: set[str] = set()
        self._has_change = False
        self._has_nonzero_b = False

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors: merging changes no name, shape or dtype."""
        return self._base.tensors

    @property
    def files(self) -> Mapping[str, Path]:
        """The base's files."""
        return self._base.files

    @property
    def targets(self) -> int:
        """How many modules the adapter changes."""
        return len(self._tuned)

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return name in self._tuned

    def load(self, name: str) -> torch.Tensor:
        """One tensor, merged if it is targeted, on the CPU, in memory of its own.

        Raises:
            NonFiniteError: if the adapter's matrices hold NaN or Inf.
        """
        item = self._tuned.get(name)
        if item is None:
            return self._base.load(name)
        return self._merge(name, item)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces; a targeted one is merged as a whole, once."""
        if name not in self._tuned:
            yield from self._base.blocks(name, rows)
            return
        merged = self.load(name)
        for start in range(0, merged.shape[0], rows):
            yield merged[start : start + rows]

    def _merge(self, name: str, item: _Tuned) -> torch.Tensor:
        import torch

        weight = self._base.load(name)
        before = weight[:_SAMPLED_ROWS].clone()
        with torch.no_grad(), _materialised(item.layer) as layer:
            layer.get_base_layer().weight = _frozen(weight.to(self._device))
            for matrix, source in (("lora_A", item.a_name), ("lora_B", item.b_name)):
                value = self._weights.load(source)
                if not torch.isfinite(value).all():
                    raise NonFiniteError(
                        f"The adapter's tensor {source!r} in {self._weights.path} has NaN or Inf.",
                        next_step="The training run diverged; use an earlier checkpoint.",
                    )
                self._has_nonzero_b |= matrix == "lora_B" and bool(value.any())
                # fp32 whatever the file's dtype, as PEFT's autocast_adapter_dtype does on loading.
                getattr(layer, matrix)[_ADAPTER].weight = _frozen(
                    value.to(self._device, torch.float32)
                )
            layer.merge(safe_merge=False)
            merged: torch.Tensor = layer.get_base_layer().weight.data.to("cpu")
        self._used.update((item.a_name, item.b_name))
        self._has_change |= not torch.equal(before, merged[:_SAMPLED_ROWS])
        return merged

    def require_all_used(self) -> None:
        """Check, after everything was loaded, that the adapter is in the result.

        Raises:
            AdapterMismatchError: listing the adapter tensors that were never merged, or if merging
                changed nothing though the adapter is not zero.
        """
        left = [name for name in self._weights.tensors if name not in self._used]
        if left:
            raise AdapterMismatchError(
                f"{len(left)} adapter tensors of {self._weights.path} were not used, since the "
                f"converter dropped the weights that they belong to: {_listed(left)}.",
                next_step="The adapter tunes parts that a GGUF of this architecture does not hold.",
            )
        if self._has_nonzero_b and not self._has_change:
            raise AdapterMismatchError(
                f"Merging {self._weights.path} changed no weight: its change is smaller than the "
                "base's rounding everywhere.",
                next_step="Check that this is the trained adapter, and its lora_alpha and r.",
            )

    @property
    def is_untrained(self) -> bool:
        """Whether every `lora_B` that was merged is zero, so that the result equals the base."""
        return bool(self._used) and not self._has_nonzero_b

    def _require_shapes(self) -> None:
        """Hold each matrix against the layer that PEFT made for it, and that against the base."""
        absent, differing = [], []
        for name, item in self._tuned.items():
            if name not in self._base.tensors:
                absent.append(name)
                continue
            layer: Any = item.layer
            pairs = (
                (name, layer.get_base_layer().weight, self._base.tensors[name]),
                (item.a_name, layer.lora_A[_ADAPTER].weight, self._weights.tensors[item.a_name]),
                (item.b_name, layer.lora_B[_ADAPTER].weight, self._weights.tensors[item.b_name]),
            )
            differing += [
                f"{label.removeprefix(_PREFIX)}: {list(info.shape)} found, {list(want.shape)} fits"
                for label, want, info in pairs
                if tuple(want.shape) != info.shape
            ]
        if absent:
            raise BaseMismatchError(
                f"The base has no tensor for {len(absent)} of {len(self._tuned)} targeted modules: "
                f"{_listed(absent)}.",
                next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
            )
        if differing:
            raise BaseMismatchError(
                f"Adapter and base do not fit: {len(differing)} shapes differ: "
                f"{_listed(differing, '; ')}.",
                next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
            )


def _meta_model(folder: Path) -> Any:
    """The base's model class without weights, for its module tree."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(
            f"transformers cannot build the base of {folder / 'config.json'}: {reason}",
            next_step="Check `model_type` and `architectures` there; a newer transformers may "
            "know the model.",
        ) from error


def _inject(model: Any, folder: Path) -> dict[str, _Tuned]:
    """Put PEFT's layers into a model on the meta device: which modules they are is PEFT's word."""
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import Linear

    config: Any = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    # The values come from the file, so that no initialisation needs to see the base.
    config.init_lora_weights = True
    try:
        peft_model = PeftModel(model, config, _ADAPTER)
    except ValueError as error:
        raise BaseMismatchError(
            f"The adapter's targets do not fit the base: {str(error).strip().splitlines()[0]}",
            next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
        ) from error
    _require_every_target(folder, config, peft_model)
    tuned = {}
    for module, layer in peft_model.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if type(layer) is not Linear:
            raise UnsupportedError(
                f"{folder} targets {module}, a {type(layer.get_base_layer()).__name__}; ftpack "
                "merges LoRA on linear layers.",
                next_step="Merge it with PEFT (merge_and_unload, save_pretrained) and package "
                "the merged folder.",
            )
        stem = f"{_PREFIX}{module}"
        tuned[module] = _Tuned(layer, f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
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
            f"{_listed(missing)}.",
            next_step="Name the base that was fine-tuned with --base PATH_OR_ID.",
        )


def _require_all_there(folder: Path, found: Mapping[str, TensorInfo], expected: set[str]) -> None:
    """Every tensor of the file is expected, and every expected one is in the file."""
    left = [name for name in found if name not in expected]
    absent = sorted(expected - set(found))
    if left:
        raise AdapterMismatchError(
            f"{len(left)} adapter tensors in {folder} belong to no targeted module of this base"
            f"{_cause(left)}: {_listed(left)}.",
            next_step="Check --base; or save the adapter again with PEFT's save_pretrained.",
        )
    if absent:
        raise AdapterMismatchError(
            f"{folder} has no tensors for {len(absent)} matrices of targeted modules: "
            f"{_listed(absent)}.",
            next_step="Save the adapter again with PEFT's save_pretrained, or check --base.",
        )


def _cause(names: list[str]) -> str:
    """Why names are not as PEFT saves them, where that is known."""
    causes = {
        "_orig_mod.": " (saved from a compiled model)",
        ".lora_A.default.": " (saved with the adapter's name in them)",
        ".module.": " (saved from a wrapped model)",
        "lora_magnitude_vector": " (DoRA's magnitudes)",
        "lora_embedding_": " (LoRA on embeddings)",
    }
    return next((text for mark, text in causes.items() if any(mark in n for n in names)), "")


def _listed(names: list[str], separator: str = ", ") -> str:
    more = f"{separator}... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more


def _frozen(value: torch.Tensor) -> torch.nn.Parameter:
    import torch

    return torch.nn.Parameter(value, requires_grad=False)


@contextmanager
def _materialised(layer: Any) -> Iterator[Any]:
    """Lend a layer real parameters, and put its meta ones back whatever happens."""
    base = layer.get_base_layer()
    meta = (base.weight, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight)
    try:
        yield layer
    finally:
        base.weight, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight = meta
        layer.merged_adapters.clear()
