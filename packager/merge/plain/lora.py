"""A base with a LoRA adapter merged in, as a checkpoint: one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import AdapterMismatchError, NonFiniteError, listed
from packager.files import read_json
from packager.merge.merged import require_changed
from packager.merge.plain.targets import LoraTarget, targets_by_name
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorFile, TensorInfo

if TYPE_CHECKING:
    import torch

# What is added at a time on the CPU: as fp32 it stays in a core's cache.
_CHUNK_ELEMENTS = 1 << 18


class Merged:
    """The tensors of `base`, those that the adapter targets with its change merged in.

    Each is what PEFT's `merge_and_unload` gives on the same device, byte for byte: the change is
    computed in fp32 (`get_delta_weight` of peft/tuners/lora/layer.py) and added to the weight with
    one rounding. Only the tensor that is being merged is in memory.

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
        NotLinearError: if it is no plain LoRA after all.
    """

    def __init__(
        self, base: Checkpoint, folder: Path, weights: TensorFile, device: str = "cpu"
    ) -> None:
        self._base = base
        self._weights = weights
        self._device = device
        self._targets = _find_targets(base, folder, weights)
        self._used: set[str] = set()
        self._changed: dict[str, bool] = {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors: merging changes no name, shape or dtype."""
        return self._base.tensors

    @property
    def files(self) -> Mapping[str, Path]:
        """The base's files."""
        return self._base.files

    @property
    def config_changes(self) -> Mapping[str, object]:
        """Nothing: the result has the base's shapes, and what was tied is not tuned."""
        return {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Nothing: the result is PEFT's own merge, which is the adapter's model."""
        return ()

    @property
    def targets(self) -> int:
        """How many modules the adapter changes."""
        return len(self._targets)

    @property
    def largest_bytes(self) -> int:
        """The size of the largest tensor that the adapter changes."""
        return max(self._base.tensors[name].size_bytes for name in self._targets)

    @property
    def held_bytes(self) -> int:
        """Nothing: the adapter's matrices are read when they are merged."""
        return 0

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return name in self._targets

    def load(self, name: str) -> torch.Tensor:
        """One tensor, merged if it is targeted, on the CPU, in memory of its own.

        Raises:
            NonFiniteError: if the adapter's matrices hold NaN or Inf.
        """
        target = self._targets.get(name)
        weight = self._base.load(name)
        if target is None:
            return weight
        merged, self._changed[name] = self._merge(weight, target)
        self._used.update((target.a_name, target.b_name))
        return merged

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces; a targeted one is merged as a whole, once."""
        if name not in self._targets:
            yield from self._base.blocks(name, rows)
            return
        merged = self.load(name)
        for start in range(0, merged.shape[0], rows):
            yield merged[start : start + rows]

    def _merge(self, weight: torch.Tensor, target: LoraTarget) -> tuple[torch.Tensor, bool]:
        """The merged weight, which may be in the given one's memory, and whether it is another."""
        import torch

        with torch.inference_mode():
            a, b = self._matrix(target.a_name), self._matrix(target.b_name)
            # torch.equal stops at the first values that differ.
            if (rounded := self._rounded_delta(a, b, target)) is not None:
                before = weight.clone()
                weight += rounded.to("cpu")
                return weight, not torch.equal(before, weight)
            if self._device == "cpu":
                return weight, _add_in_chunks(weight, a, b, target)
            on_device = weight.to(self._device)
            on_device += delta_of(a, b, target)
            merged = on_device.to("cpu")
            return merged, not torch.equal(weight, merged)

    def _rounded_delta(
        self, a: torch.Tensor, b: torch.Tensor, target: LoraTarget
    ) -> torch.Tensor | None:
        """The change in fewer bits than fp32, where it is rounded before it is added."""
        return None

    def _matrix(self, name: str) -> torch.Tensor:
        """A matrix of the adapter in fp32, as PEFT's `autocast_adapter_dtype` has it on loading."""
        import torch

        matrix = self._weights.load(name)
        if not torch.isfinite(matrix).all():
            raise NonFiniteError(
                f"The adapter's tensor {name!r} in {self._weights.path} has NaN or Inf.",
                next_step="The training run diverged; use an earlier checkpoint.",
            )
        return matrix.to(self._device, torch.float32)

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that the adapter is in the result.

        Args:
            read: the tensors that were to be read; None for all.

        Raises:
            AdapterMismatchError: listing the adapter tensors that were never merged, or the modules
                that merging did not change though their adapter is not zero.
        """
        wanted = set(self._weights.tensors) if read is None else set[str]()
        for name in self._targets.keys() & (read or ()):
            wanted |= {self._targets[name].a_name, self._targets[name].b_name}
        left = sorted(wanted - self._used)
        if left:
            raise AdapterMismatchError(
                f"{len(left)} adapter tensors of {self._weights.path} were not used: "
                f"{listed(left)}.",
                next_step="This should not happen: please report it, with adapter_config.json.",
            )
        unchanged = [
            name.removesuffix(".weight")
            for name, has_changed in self._changed.items()
            if not has_changed and not self._has_zero_part(self._targets[name])
        ]
        require_changed(self._weights.path, unchanged, self.targets)

    def _has_zero_part(self, target: LoraTarget) -> bool:
        """Whether one of two matrices is all zero, as `lora_B` is before training."""
        names = (target.a_name, target.b_name)
        return any(not bool(self._weights.load(name).any()) for name in names)

    @property
    def is_untrained(self) -> bool:
        """Whether everything that was merged is as the base has it."""
        return bool(self._changed) and not any(self._changed.values())


def _find_targets(base: Checkpoint, folder: Path, weights: TensorFile) -> dict[str, LoraTarget]:
    whole = [f"{n} ({i.dtype})" for n, i in weights.tensors.items() if not i.is_floating_point]
    if whole:
        raise AdapterMismatchError(
            f"{weights.path} holds {len(whole)} matrices of whole numbers, which no training "
            f"leaves: {listed(whole)}.",
            next_step="Save the adapter again with PEFT's save_pretrained.",
        )
    config = read_json(folder / "adapter_config.json")
    targets = targets_by_name(base, config, weights.tensors)
    if targets is not None:
        return targets
    # Imported here: transformers and peft take seconds.
    from packager.merge.plain.peft_targets import targets_by_peft

    return targets_by_peft(base, folder, weights.tensors)


def delta_of(a: torch.Tensor, b: torch.Tensor, target: LoraTarget) -> torch.Tensor:
    """What is added to the weight, in fp32 (`get_delta_weight` of PEFT)."""
    delta = b @ a
    delta *= target.scaling
    return delta.T if target.is_transposed else delta


def _add_in_chunks(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, target: LoraTarget
) -> bool:
    """`weight += delta`, some rows at a time, in memory that stays in a core's cache.

    Gives whether that has changed any value: as a rule the first rows tell.

    Several times as fast as torch's sum of two dtypes, and without a fp32 copy of the tensor. Every
    element of the product is a sum over r by itself: it is the same whatever rows are asked for.
    """
    import torch

    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    room = torch.empty((rows, weight.shape[1]), dtype=torch.float32)
    has_changed = False
    for start in range(0, weight.shape[0], rows):
        chunk = weight[start : start + rows]
        total = room[: len(chunk)]
        total.copy_(chunk)
        if target.is_transposed:
            total += delta_of(a[:, start : start + rows], b, target)
        else:
            total += delta_of(a, b[start : start + rows], target)
        before = None if has_changed else chunk.clone()
        chunk.copy_(total)
        has_changed = before is None or not torch.equal(before, chunk)
    return has_changed
