"""A base with any adapter that PEFT can merge, as a checkpoint: one module at a time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from packager.allocator import give_back_free_pages, give_back_large_blocks
from packager.errors import AdapterMismatchError, UnsupportedError, listed
from packager.merge.merged import Merged, MergeFacts, require_changed
from packager.merge.next_steps import MERGE_WITH_PEFT, REPORT
from packager.merge.peft.adapter_values import load_adapter
from packager.merge.peft.layout import Layout
from packager.merge.peft.modules import find_units, has_zero_part, merge_unit
from packager.merge.peft.skeleton import build_skeleton
from packager.merge.peft.stacks import is_on_stack
from packager.merge.peft.write_groups import Batch, Batches, find_batches
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo

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


class PeftMerged(Merged):
    """The tensors of `base`, those that the adapter changes as PEFT's own layers make them.

    They are what PEFT's `merge_and_unload` and transformers' `save_pretrained` give, byte for byte,
    but for a tied embedding that an adapter changes on one side: PEFT's merge changes the other
    side as well, which the adapter never did. Here both are written, each with its own values.

    In memory is one module of the base at a time, and of the adapter what belongs to it.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: any that PEFT can merge.
        device: where to merge, as torch names it.

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or layers without any.
        BaseMismatchError: listing the shapes that differ.
        NonFiniteError: naming a tensor of the adapter with NaN or Inf.
        UnsupportedError: with the reason of PEFT or transformers.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter, device: str) -> None:
        give_back_large_blocks()
        self._weights = adapter.weights
        self._device = device
        self._layout = Layout(base.tensors, base.config)
        self._skeleton = build_skeleton(self._layout, adapter)
        load_adapter(self._skeleton, self._layout, adapter)
        plan = find_batches(self._layout, find_units(self._skeleton))
        if not plan.batches:
            raise AdapterMismatchError(
                f"PEFT tunes no module of this base with {adapter.weights.path}.",
                next_step="Check `target_modules` in adapter_config.json, and --base.",
            )
        self._units = [unit for batch in plan.batches for unit in batch.units]
        self._tensors = {**base.tensors, **{info.name: info for info in plan.added}}
        self._copies = plan.copies
        self._batch_of = {name: batch for batch in plan.batches for name in batch.outputs}
        self._lock = threading.Lock()
        self._made: dict[str, torch.Tensor] = {}
        self._loaded: set[str] = set()
        super().__init__(base, self._facts(plan), base.config.changed(self._changes(plan)))

    def _facts(self, plan: Batches) -> MergeFacts:
        warnings = plan.warnings + self._skeleton.notes
        return MergeFacts(
            modules=len(self._units),
            merged_names=frozenset(self._batch_of),
            largest_bytes=max(map(self._merge_bytes, plan.batches)),
            # The rest of the adapter is read when a module is merged.
            held_bytes=self._skeleton.held_bytes,
            warnings=(*warnings, _FACTORED) if self._skeleton.is_factored else warnings,
        )

    def _changes(self, plan: Batches) -> dict[str, object]:
        """What the configuration says other than the base's: untied embeddings, and their rows."""
        changes: dict[str, object] = {"tie_word_embeddings": False} if plan.is_untied else {}
        if self._skeleton.rows is not None:
            changes["vocab_size"] = self._skeleton.rows
        return changes

    def _merge_bytes(self, batch: Batch) -> int:
        """The size of a batch with what PEFT computes of it in fp32, which is its size once more.

        Of stacked experts PEFT computes a few at a time.
        """
        is_on_stacks = all(is_on_stack(unit.layer) for unit in batch.units)
        return self._output_bytes(batch) * (1 if is_on_stacks else 2)

    def _output_bytes(self, batch: Batch) -> int:
        return sum(self._tensors[name].size_bytes for name in batch.outputs)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors, and the head where it is no longer tied."""
        return self._tensors

    def load(self, name: str) -> torch.Tensor:
        """One tensor, merged if the adapter changes it, on the CPU, in memory of its own."""
        batch = self._batch_of.get(name)
        if batch is None:
            return self.base.load(self._copies.get(name, name))
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
            yield from self.base.blocks(self._copies.get(name, name), rows)
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
                    self._skeleton, unit, self._layout, self.base.load, self._device
                )
                self._has_changed[unit.key] = merged.has_changed
                parameters |= {n: t for n, t in merged.results.items() if n in batch.written}
                del merged
            others = [name for name in batch.written if name not in parameters]
            parameters |= self._layout.read(others, self.base.load)
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
                    next_step=MERGE_WITH_PEFT,
                )
        return made

    def _make_room(self, batch: Batch) -> None:
        if self._output_bytes(batch) >= _LARGE_BYTES:
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
                next_step=REPORT,
            )
        unchanged = [
            unit
            for unit in self._units
            if not self._has_changed.get(unit.key, read is not None)
            and not has_zero_part(self._skeleton, unit)
        ]
        if any(self._has_changed.values()):
            is_multiplying = self._skeleton.config.peft_type.value in _MULTIPLYING
            unchanged = [unit for unit in unchanged if unit.is_additive and not is_multiplying]
        require_changed(self._weights.path, [unit.key for unit in unchanged], self.facts.modules)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is all that is in its memory, in its own order."""
    import torch

    is_alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    if is_alone:
        return tensor.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
