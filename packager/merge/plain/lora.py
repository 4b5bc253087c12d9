"""A base with a LoRA merged in, as a checkpoint: one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

from packager.errors import AdapterMismatchError, listed
from packager.merge.finite import load_finite
from packager.merge.merged import Merged, MergeFacts, require_changed
from packager.merge.next_steps import REPORT, SAVE_AGAIN
from packager.merge.plain.peft_targets import targets_by_peft
from packager.merge.plain.targets import LoraTarget, targets_by_name
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

# How much is added at a time on the CPU: as fp32 it stays in a core's cache.
_CHUNK_ELEMENTS = 1 << 18


class LoraMerged(Merged):
    """The tensors of `base`, those that the adapter targets with its change merged in.

    Each is what PEFT's `merge_and_unload` gives on the same device, byte for byte: the change is
    computed in fp32 (`get_delta_weight` of peft/tuners/lora/layer.py) and added to the weight with
    one rounding. Only the tensor that is being merged is in memory.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: a LoRA on linear layers.
        device: where to merge, as torch names it (`cpu`, `cuda`, `cuda:1`).
        delta_precision: what the change is rounded to before it is added: `fp32`, or the element
            type of the adapter's own matrices.

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or targeted modules
            that have none.
        BaseMismatchError: listing the shapes that differ.
        UnsupportedError: if transformers does not know the base's architecture.
        NotLinearError: if it is not a plain LoRA after all.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapter: Adapter,
        device: str,
        *,
        delta_precision: Literal["fp32", "adapter"] = "fp32",
    ) -> None:
        self._weights = adapter.weights
        self._device = device
        self._delta_precision = delta_precision
        self._targets = _find_targets(base, adapter)
        self._used: set[str] = set()
        # The result has the base's names and shapes, and is PEFT's own merge: no warning. Nothing
        # is held: the adapter's matrices are read when they are merged.
        super().__init__(
            base,
            MergeFacts(
                modules=len(self._targets),
                merged_names=frozenset(self._targets),
                largest_bytes=max(
                    (base.tensors[name].size_bytes for name in self._targets), default=0
                ),
            ),
        )

    def load(self, name: str) -> torch.Tensor:
        """One tensor, merged if it is targeted, on the CPU, in memory of its own.

        Raises:
            NonFiniteError: if the adapter's matrices hold NaN or Inf.
        """
        target = self._targets.get(name)
        weight = self.base.load(name)
        if target is None:
            return weight
        merged = self._merge(name, weight, target)
        self._used.update((target.a_name, target.b_name))
        return merged

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces; a targeted one is merged as a whole, once."""
        if name not in self._targets:
            yield from self.base.blocks(name, rows)
            return
        merged = self.load(name)
        for start in range(0, merged.shape[0], rows):
            yield merged[start : start + rows]

    def _merge(self, name: str, weight: torch.Tensor, target: LoraTarget) -> torch.Tensor:
        """The merged weight, which may be in the given one's memory."""
        import torch

        with torch.inference_mode():
            a, b = self._matrix(target.a_name), self._matrix(target.b_name)
            dtype = self._delta_dtype(target)
            if dtype == torch.float32 and self._device == "cpu":
                self._has_changed[name] = _add_in_chunks(weight, a, b, target)
                return weight
            if dtype == torch.float32:
                merged = weight.to(self._device)
                merged += delta_of(a, b, target)
                merged = merged.to("cpu")
            else:
                merged = weight.clone()
                merged += delta_of(a, b, target).to(dtype).to("cpu")
            # torch.equal stops at the first values that differ.
            self._has_changed[name] = not torch.equal(weight, merged)
            return merged

    def _delta_dtype(self, target: LoraTarget) -> torch.dtype:
        """The element type that a change is rounded to before it is added."""
        import torch

        if self._delta_precision == "fp32":
            return torch.float32
        return self._weights.tensors[target.a_name].torch_dtype

    def _matrix(self, name: str) -> torch.Tensor:
        """A matrix of the adapter in fp32, as PEFT's `autocast_adapter_dtype` has it on loading."""
        import torch

        return load_finite(self._weights, name).to(self._device, torch.float32)

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that the adapter was applied.

        Args:
            read: the tensors that were to be read; None for all.

        Raises:
            AdapterMismatchError: listing the adapter tensors that were never merged, or the modules
                that merging did not change though their adapter is not zero.
        """
        wanted = set(self._weights.tensors) if read is None else set[str]()
        for name in self._targets.keys() & (read or ()):
            wanted |= {self._targets[name].a_name, self._targets[name].b_name}
        unused = sorted(wanted - self._used)
        if unused:
            raise AdapterMismatchError(
                f"{len(unused)} adapter tensors of {self._weights.path} were not used: "
                f"{listed(unused)}.",
                next_step=REPORT,
            )
        unchanged = [
            name.removesuffix(".weight")
            for name, is_changed in self._has_changed.items()
            if not is_changed and not self._has_zero_part(self._targets[name])
        ]
        require_changed(self._weights.path, unchanged, self.facts.modules)

    def _has_zero_part(self, target: LoraTarget) -> bool:
        """Whether one of two matrices is all zero, as `lora_B` is before training."""
        names = (target.a_name, target.b_name)
        return any(not bool(self._weights.load(name).any()) for name in names)


def _find_targets(base: Checkpoint, adapter: Adapter) -> dict[str, LoraTarget]:
    tensors = adapter.weights.tensors
    integers = [f"{n} ({i.dtype})" for n, i in tensors.items() if not i.is_floating_point]
    if integers:
        raise AdapterMismatchError(
            f"{adapter.weights.path} holds {len(integers)} integer matrices, which training does "
            f"not produce: {listed(integers)}.",
            next_step=SAVE_AGAIN,
        )
    targets = targets_by_name(base, adapter)
    return targets_by_peft(base, adapter) if targets is None else targets


def delta_of(a: torch.Tensor, b: torch.Tensor, target: LoraTarget) -> torch.Tensor:
    """What is added to the weight, in fp32 (`get_delta_weight` of PEFT)."""
    delta = b @ a
    delta *= target.scaling
    return delta.T if target.is_transposed else delta


def _add_in_chunks(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, target: LoraTarget
) -> bool:
    """`weight += delta`, some rows at a time, in memory that stays in a core's cache.

    This is several times as fast as torch's sum of two dtypes, and needs no fp32 copy of the
    tensor. Every element of the product is a sum over r by itself: it does not depend on the rows
    that are computed together.

    Returns:
        Whether any value has changed; as a rule the first rows decide.
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
