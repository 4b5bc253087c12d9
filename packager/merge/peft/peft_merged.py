"""A base with any adapter that PEFT can merge, as a checkpoint: one module at a time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from packager.allocator import give_back_free_pages, give_back_large_blocks
from packager.errors import AdapterMismatchError, UnsupportedError, listed
from packager.merge.merged import Merged, MergeFacts, require_changed
from packager.merge.next_steps import MERGE_WITH_PEFT, REPORT
from packager.merge.peft.adapter_values import load_values
from packager.merge.peft.layout import Layout
from packager.merge.peft.modules import TunedModule, find_tuned_modules, has_zero_part, merge_module
from packager.merge.peft.skeleton import build_skeleton
from packager.merge.peft.write_groups import WriteGroup, WritePlan, plan_writing
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch


# A module of this size, as a layer's experts, does not fit into what smaller ones left in the heap.
_LARGE_BYTES = 64 << 20
# Methods that multiply: in 16 bits, a weak training can round to no change of a module at all.
_MULTIPLYING = ("BOFT", "HRA", "IA3", "LN_TUNING", "OFT", "ROAD")

_FACTORED = (
    "PEFT factors the base's weights again to load this adapter: on another machine, or with "
    "another number of threads, the result can differ from this one"
)


class PeftMerged(Merged):
    """The tensors of `base`, those that the adapter changes as PEFT's own layers make them.

    They are what PEFT's `merge_and_unload` and transformers' `save_pretrained` give, byte for byte,
    except for a tied embedding that an adapter changes on one side: PEFT's merge changes the other
    side as well, which the adapter never did. Here both are written, each with its own values.

    Memory holds one module of the base at a time, and the adapter's tensors for it.

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
        load_values(self._skeleton, self._layout, adapter)
        plan = plan_writing(self._layout, find_tuned_modules(self._skeleton))
        if not plan.groups:
            raise AdapterMismatchError(
                f"PEFT tunes no module of this base with {adapter.weights.path}.",
                next_step="Check `target_modules` in adapter_config.json, and --base.",
            )
        self._modules = [module for group in plan.groups for module in group.modules]
        self._tensors = {**base.tensors, **{info.name: info for info in plan.added}}
        self._copies = plan.copies
        self._group_of = {name: group for group in plan.groups for name in group.outputs}
        self._lock = threading.Lock()
        self._outputs: dict[str, torch.Tensor] = {}
        self._loaded: set[str] = set()
        super().__init__(base, self._facts(plan), base.config.changed(self._changes(plan)))

    def _facts(self, plan: WritePlan) -> MergeFacts:
        warnings = plan.warnings + self._skeleton.notes
        return MergeFacts(
            modules=len(self._modules),
            merged_names=frozenset(self._group_of),
            largest_bytes=max(map(self._merge_bytes, plan.groups)),
            # The rest of the adapter is read when a module is merged.
            held_bytes=self._skeleton.held_bytes,
            warnings=(*warnings, _FACTORED) if self._skeleton.is_factored else warnings,
        )

    def _changes(self, plan: WritePlan) -> dict[str, object]:
        """What the configuration says other than the base's: untied embeddings, and their rows."""
        changes: dict[str, object] = {"tie_word_embeddings": False} if plan.is_untied else {}
        if self._skeleton.rows is not None:
            changes["vocab_size"] = self._skeleton.rows
        return changes

    def _merge_bytes(self, group: WriteGroup) -> int:
        """The size of a group's tensors, and as much again for what PEFT computes of it in fp32.

        Of stacked experts PEFT computes a few at a time.
        """
        is_on_stacks = all(module.is_on_stack for module in group.modules)
        return self._output_bytes(group) * (1 if is_on_stacks else 2)

    def _output_bytes(self, group: WriteGroup) -> int:
        return sum(self._tensors[name].size_bytes for name in group.outputs)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors, and the head where it is no longer tied."""
        return self._tensors

    def load(self, name: str) -> torch.Tensor:
        """One tensor, merged if the adapter changes it, on the CPU, in memory of its own."""
        group = self._group_of.get(name)
        if group is None:
            return self.base.load(self._copies.get(name, name))
        with self._lock:
            if name not in self._outputs:
                # What is left of another group goes: it is computed again if it is asked for.
                self._outputs = {}
                self._outputs = self._compute(group)
            self._loaded.add(name)
            # In memory of its own: one expert would keep all of its layer's.
            return _alone(self._outputs.pop(name))

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces; one that the adapter changes is merged as a whole, once."""
        if name not in self._group_of:
            yield from self.base.blocks(self._copies.get(name, name), rows)
            return
        merged = self.load(name)
        for start in range(0, merged.shape[0], rows):
            yield merged[start : start + rows]

    def _compute(self, group: WriteGroup) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors that a group is written as, by name."""
        import torch

        self._make_room(group)
        # The converter reads in inference mode, where PEFT's layers cannot be built.
        with torch.inference_mode(False), torch.no_grad():
            parameters = self._merge(group)
            others = [name for name in group.written if name not in parameters]
            parameters |= self._layout.read(others, self.base.load)
            self._make_room(group)
            tensors: dict[str, torch.Tensor] = {}
            while parameters:
                # What is not written together is let go in between: a layer's experts are large.
                together = self._layout.siblings([next(iter(parameters))])
                tensors |= self._layout.write({name: parameters.pop(name) for name in together})
        for name in group.outputs:
            tensor, info = tensors[name], self._tensors[name]
            if tensor.shape != info.shape or tensor.dtype != info.torch_dtype:
                raise UnsupportedError(
                    f"PEFT makes {name} {tensor.dtype} {list(tensor.shape)}, where the "
                    f"base has {info.dtype} {list(info.shape)}.",
                    next_step=MERGE_WITH_PEFT,
                )
        return tensors

    def _merge(self, group: WriteGroup) -> dict[str, torch.Tensor]:
        """The parameters of a group's modules that are written, by name."""
        parameters: dict[str, torch.Tensor] = {}
        for module in group.modules:
            merged = merge_module(
                self._skeleton, module, self._layout, self.base.load, self._device
            )
            self._has_changed[module.name] = merged.has_changed
            parameters |= {n: t for n, t in merged.parameters.items() if n in group.written}
            del merged
        return parameters

    def _make_room(self, group: WriteGroup) -> None:
        if self._output_bytes(group) >= _LARGE_BYTES:
            give_back_free_pages()

    def require_all_used(self, read: Collection[str] | None = None) -> None:
        """Check, after everything was loaded, that the adapter was applied.

        Args:
            read: the tensors that were to be read; None for all.

        Raises:
            AdapterMismatchError: listing the tensors that were never loaded, or the modules that
                merging did not change though their adapter is not zero.
        """
        expected = set(self._group_of) if read is None else self._group_of.keys() & read
        unused = sorted(expected - self._loaded)
        if unused:
            raise AdapterMismatchError(
                f"What {self._weights.path} changes in {len(unused)} tensors was not used: "
                f"{listed(unused)}.",
                next_step=REPORT,
            )
        unchanged = [
            module
            for module in self._modules
            if not self._has_changed.get(module.name, read is not None)
            and not has_zero_part(self._skeleton, module)
        ]
        if any(self._has_changed.values()):
            unchanged = [module for module in unchanged if self._must_change(module)]
        names = [module.name for module in unchanged]
        require_changed(self._weights.path, names, self.facts.modules)

    def _must_change(self, module: TunedModule) -> bool:
        """Whether every training changes a module, even a weak one that is rounded to 16 bits."""
        return module.is_additive and self._skeleton.config.peft_type.value not in _MULTIPLYING


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is all that is in its memory, in its own order."""
    import torch

    is_alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    if is_alone:
        return tensor.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
