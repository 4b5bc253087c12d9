"""A base with any adapter that PEFT can merge, as a checkpoint: one module at a time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.allocator import give_back_free_pages, give_back_large_blocks
from packager.errors import AdapterMismatchError, UnsupportedError, listed
from packager.merge.merged import require_changed
from packager.merge.peft.adapter_values import load_adapter
from packager.merge.peft.layout import Layout
from packager.merge.peft.modules import find_units, has_zero_part, merge_unit
from packager.merge.peft.skeleton import build_skeleton
from packager.merge.peft.stacks import is_on_stack
from packager.merge.peft.write_groups import Batch, find_batches
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorFile, TensorInfo

if TYPE_CHECKING:
    import torch


# A module of so much, as a layer's experts, does not fit into what smaller ones left in the heap.
_LARGE_BYTES = 64 << 20
# Methods that multiply: in 16 bits a weak training can round to no change of a module at all.
_MULTIPLYING = ("BOFT", "HRA", "IA3", "LN_TUNING", "OFT", "ROAD")

_FACTORED = (
    "PEFT factors the base's weights anew to load this adapter: on another machine, or with "
    "another number of threads, the result can differ from this one"
)


class PeftMerged:
    """The tensors of `base`, those that the adapter changes as PEFT's own layers make them.

    They are what PEFT's `merge_and_unload` and transformers' `save_pretrained` give, byte for byte,
    but for a tied embedding that an adapter changes on one side: PEFT's merge changes the other
    side as well, which the adapter never did. Here both are written, each with its own values.

    In memory is one module of the base at a time, and of the adapter what belongs to it.

    Args:
        base: the checkpoint that the adapter was trained on.
        folder: the adapter's folder.
        weights: the adapter's tensors.
        device: where to merge, as torch names it.

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or layers without any.
        BaseMismatchError: listing the shapes that differ.
        NonFiniteError: naming a tensor of the adapter with NaN or Inf.
        UnsupportedError: with the reason of PEFT or transformers.
    """

    def __init__(
        self, base: Checkpoint, folder: Path, weights: TensorFile, device: str = "cpu"
    ) -> None:
        give_back_large_blocks()
        self._base = base
        self._weights = weights
        self._device = device
        self._layout = Layout(base.tensors, base.config)
        self._skeleton = build_skeleton(self._layout, folder, weights)
        load_adapter(self._skeleton, self._layout, folder, weights)
        plan = find_batches(self._layout, find_units(self._skeleton))
        if not plan.batches:
            raise AdapterMismatchError(
                f"PEFT tunes no module of this base with {weights.path}.",
                next_step="Check `target_modules` in adapter_config.json, and --base.",
            )
        self._units = [unit for batch in plan.batches for unit in batch.units]
        self._tensors = {**base.tensors, **{info.name: info for info in plan.added}}
        self._copies = plan.copies
        self._is_untied = plan.is_untied
        self._warnings = plan.warnings + self._skeleton.notes
        if self._skeleton.is_factored:
            self._warnings += (_FACTORED,)
        self._batch_of = {name: batch for batch in plan.batches for name in batch.outputs}
        self._lock = threading.Lock()
        self._made: dict[str, torch.Tensor] = {}
        self._loaded: set[str] = set()
        self._changed: dict[str, bool] = {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors, and the head where it is no longer tied."""
        return self._tensors

    @property
    def files(self) -> Mapping[str, Path]:
        """The base's files; what its `config.json` no longer says right is in `config_changes`."""
        return self._base.files

    @property
    def config_changes(self) -> Mapping[str, object]:
        """That embeddings are no longer tied, and how many rows they have, where that changed."""
        changes: dict[str, object] = {"tie_word_embeddings": False} if self._is_untied else {}
        if self._skeleton.rows is not None:
            changes["vocab_size"] = self._skeleton.rows
        return changes

    @property
    def targets(self) -> int:
        """How many modules the adapter changes."""
        return len(self._units)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the result is not PEFT's own merge, and why."""
        return self._warnings

    @property
    def largest_bytes(self) -> int:
        """The largest module with what PEFT computes of it in fp32, which is once more its size.

        Of stacked experts it computes a few at a time.
        """
        return max(
            sum(self._tensors[name].size_bytes for name in batch.outputs)
            * (1 if all(is_on_stack(unit.layer) for unit in batch.units) else 2)
            for batch in self._batch_of.values()
        )

    @property
    def held_bytes(self) -> int:
        """What PEFT's layers and the adapter hold that is not read when a module is merged."""
        return self._skeleton.held_bytes

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return name in self._batch_of

    def load(self, name: str) -> torch.Tensor:
        """One tensor, merged if the adapter changes it, on the CPU, in memory of its own."""
        batch = self._batch_of.get(name)
        if batch is None:
            return self._base.load(self._copies.get(name, name))
        with self._lock:
            if name not in self._made:
                # The rest of another module goes: what was not asked for in a row is made again.
                self._made = {}
                self._made = self._make(batch)
            self._loaded.add(name)
            # In memory of its own: one expert would keep all of its layer's.
            return _alone(self._made.pop(name))

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces; one that the adapter changes is merged as a whole, once."""
        if name not in self._batch_of:
            yield from self._base.blocks(self._copies.get(name, name), rows)
            return
        merged = self.load(name)
        for start in range(0, merged.shape[0], rows):
            yield merged[start : start + rows]

    def _make(self, batch: Batch) -> dict[str, torch.Tensor]:
        import torch

        self._make_room(batch)
        # The converter reads in inference mode, where PEFT's layers cannot be built.
        with torch.inference_mode(False), torch.no_grad():
            parameters: dict[str, Any] = {}
            for unit in batch.units:
                merged = merge_unit(
                    self._skeleton, unit, self._layout, self._base.load, self._device
                )
                self._changed[unit.key] = merged.has_changed
                parameters |= {n: t for n, t in merged.results.items() if n in batch.written}
                del merged
            others = [name for name in batch.written if name not in parameters]
            parameters |= self._layout.read(others, self._base.load)
            self._make_room(batch)
            made: dict[str, torch.Tensor] = {}
            while parameters:
                # What is not written together is let go in between: a layer's experts are large.
                together = self._layout.siblings([next(iter(parameters))])
                made |= self._layout.write({name: parameters.pop(name) for name in together})
        for name in batch.outputs:
            info = self._tensors[name]
            if made[name].shape != info.shape or made[name].dtype != info.torch_dtype:
                raise UnsupportedError(
                    f"PEFT makes {name} {made[name].dtype} {list(made[name].shape)}, where the "
                    f"base has {info.dtype} {list(info.shape)}.",
                    next_step="Merge it with PEFT (merge_and_unload, save_pretrained) and package "
                    "the merged folder.",
                )
        return made

    def _make_room(self, batch: Batch) -> None:
        if sum(self._tensors[name].size_bytes for name in batch.outputs) >= _LARGE_BYTES:
            give_back_free_pages()

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that the adapter is in the result.

        Args:
            read: the tensors that were to be read; None for all.

        Raises:
            AdapterMismatchError: listing the tensors that were never loaded, or the modules that
                merging did not change though their adapter is not zero.
        """
        wanted = set(self._batch_of) if read is None else self._batch_of.keys() & read
        left = sorted(wanted - self._loaded)
        if left:
            raise AdapterMismatchError(
                f"What {self._weights.path} changes in {len(left)} tensors was not used: "
                f"{listed(left)}.",
                next_step="This should not happen: please report it, with adapter_config.json.",
            )
        unchanged = [
            unit
            for unit in self._units
            if not self._changed.get(unit.key, read is not None)
            and not has_zero_part(self._skeleton, unit)
        ]
        if any(self._changed.values()):
            is_multiplying = self._skeleton.config.peft_type.value in _MULTIPLYING
            unchanged = [unit for unit in unchanged if unit.is_additive and not is_multiplying]
        require_changed(self._weights.path, [unit.key for unit in unchanged], self.targets)

    @property
    def is_untrained(self) -> bool:
        """Whether everything that was merged is as the base has it."""
        return bool(self._changed) and not any(self._changed.values())


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is all that is in its memory, in its own order."""
    import torch

    is_alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    if is_alone:
        return tensor.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
