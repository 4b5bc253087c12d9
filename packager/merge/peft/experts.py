"""LoRAs on stacked experts: the layouts of older PEFT and of Unsloth, turned into PEFT's own.

PEFT keeps the LoRAs of all experts of a stack in one pair of matrices: `lora_A`
`[experts * r, in_features]`, an expert's rows together, and `lora_B` `[out_features, r * experts]`,
where column `j` is of expert `j % experts` (`ParamWrapper.get_delta_weight` of
peft/tuners/lora/layer.py). Files have two others:

- PEFT before 0.19.1 swaps the roles of the two sides of a stack, for most models.
- Unsloth before 2026.9.6 trained `lora_B` with an expert's columns together (unsloth#6930). Newer
  versions record the layout in adapter_config.json (`write_fused_expert_lora_layout` of
  unsloth_zoo's temporary_patches/moe_utils.py); for older ones, the layout follows from the rest of
  that file, as in Unsloth's own loader (`saved_lora_b_layouts` there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from packager.errors import UnsupportedError
from packager.merge.peft.lazy_tensor import LazyTensor
from packager.merge.peft.peft_config import ADAPTER_NAME, UNSLOTH_KEYS
from packager.merge.peft.placeholders import replaced
from packager.merge.plain.targets import PREFIX
from packager.model.adapter import Adapter, AdapterConfig

if TYPE_CHECKING:
    import torch

_GROUPED, _PEFTS = "grouped_by_expert", "rank_major"
# The model types whose experts Unsloth trained with its own forward, from 2026.2 to 2026.9.5.
_GROUPED_FAMILIES = frozenset({
    "deepseek_v3", "ernie4_5_moe", "ernie4_5_vl_moe", "gemma4", "glm4_moe", "glm4_moe_lite",
    "gpt_oss", "lfm2_moe", "mixtral", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe",
})  # fmt: skip
_UNSLOTHS_PARAMETERS = ("gate_up_proj", "down_proj")
# The layers of one expert that a stack contains.
_FUSED = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_REGROUPED = (
    "By adapter_config.json, Unsloth before 2026.9.6 trained this adapter's experts, and grouped "
    "lora_B by expert: it is regrouped, as Unsloth does. If it is in PEFT's own layout, add "
    '"lora_B_layout": "rank_major" there'
)  # fmt: skip


def is_stacked(adapter: Adapter) -> bool:
    """Whether an adapter has one LoRA for all experts of a stack, and not one for each expert."""
    has_stacks = bool(adapter.config.raw.get("target_parameters"))
    return has_stacks and not any(map(_ONE_EXPERT.search, adapter.weights.tensors))


@contextmanager
def targeted_as_stacks(config: Any, model: Any) -> Iterator[None]:
    """While PEFT injects a LoRA on stacks, keep it from targeting single experts.

    Unsloth's `target_modules` also name the layers that a stack has replaced. PEFT takes that for
    an adapter of transformers 4, and doubles the rank of a stack that has two of them.

    Args:
        config: PEFT's; it loses the targets that the model does not have.
        model: the base's.
    """
    from peft.utils import transformers_weight_conversion as conversion

    if isinstance(config.target_modules, set | list):
        ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        config.target_modules = {
            target for target in config.target_modules if target not in _FUSED or target in ends
        }
    with replaced(conversion, "convert_peft_config_for_transformers", lambda *_, **__: None):
        yield


@dataclass(frozen=True)
class Restacked:
    """An adapter's tensors in PEFT's layout.

    Attributes:
        tensors: by their keys in PEFT's model.
        notes: what the user should know of them.
    """

    tensors: dict[str, LazyTensor]
    notes: tuple[str, ...]


def restack(root: Any, state: Mapping[str, LazyTensor], config: AdapterConfig) -> Restacked:
    """An adapter's tensors, those on stacks of experts turned into PEFT's layout.

    Args:
        root: the base's model with PEFT's layers in it.
        state: the adapter's tensors by their keys in PEFT's model.
        config: the adapter's.

    Raises:
        UnsupportedError: if a stack's layout is ambiguous.
    """
    stacks = _stacks(root, state)
    swaps = {_is_swapped(stack) for stack in stacks} - {None}
    tensors = dict(state)
    notes: dict[str, None] = {}
    for stack in stacks:
        a, b, experts = stack.a, stack.b, int(stack.layer.num_experts)
        if _layout_of_b(config.raw, stack.layer) == _GROUPED and b.shape[1] > experts:
            b = LazyTensor(b.shape, b.dtype, partial(_interleaved, b, experts))
            if not _is_declared(config.raw):
                notes[_REGROUPED] = None
        is_swapped = _is_swapped(stack)
        if is_swapped is None:
            # A square stack could be either; other stacks of the same adapter decide, if any.
            is_swapped = swaps == {True} if len(swaps) == 1 else _is_swapped_by(stack, config)
        if is_swapped:
            a, b = (
                LazyTensor((a.shape[0], b.shape[0]), b.dtype, partial(_a_of_b, b, experts)),
                LazyTensor((a.shape[1], b.shape[1]), a.dtype, partial(_b_of_a, a, experts)),
            )
        tensors |= {stack.a_key: a, stack.b_key: b}
    return Restacked(tensors, tuple(notes))


@dataclass(frozen=True)
class _Stack:
    """PEFT's layer on a stack of experts, and the adapter's two matrices for it."""

    layer: Any
    a_key: str
    b_key: str
    a: LazyTensor
    b: LazyTensor


def _stacks(root: Any, state: Mapping[str, LazyTensor]) -> list[_Stack]:
    stacks = []
    for name, layer in root.named_modules():
        if not hasattr(layer, "parameter_name") or layer.num_experts == 1:
            continue
        keys = [f"{PREFIX}{name}.lora_{side}.{ADAPTER_NAME}.weight" for side in "AB"]
        pair = [state[key] for key in keys if key in state]
        if len(pair) == 2 and all(len(matrix.shape) == 2 for matrix in pair):
            a, b = pair
            if a.shape[0] == b.shape[1] and a.shape[0] % layer.num_experts == 0:
                stacks.append(_Stack(layer, keys[0], keys[1], a, b))
    return stacks


def _layout_of_b(config: Mapping[str, object], layer: Any) -> str:
    """How the columns of `lora_B` are ordered, by Unsloth's marks in `adapter_config.json`."""
    parameter = layer.parameter_name
    for source in (config, _auto_mapping(config)):
        detail = source.get("unsloth_fused_expert_lora")
        entries = detail.get("parameters") if isinstance(detail, dict) else None
        declared: object = source.get("lora_B_layout")
        if isinstance(entries, dict):
            entry = entries.get(parameter)
            declared = entry.get("lora_B_layout") if isinstance(entry, dict) else _PEFTS
        if declared is None:
            continue
        if declared not in (_GROUPED, _PEFTS):
            raise UnsupportedError(
                f"adapter_config.json says `lora_B_layout` {declared!r} for {parameter}; "
                f"ftpack knows {_PEFTS!r} and {_GROUPED!r}.",
                next_step="Merge it with Unsloth (save_pretrained_merged) and package the merged "
                "folder.",
            )
        return str(declared) if parameter in _UNSLOTHS_PARAMETERS else _PEFTS
    is_unsloths = bool(_auto_mapping(config).get("unsloth_fixed"))
    is_grouped = is_unsloths and _family(layer) in _GROUPED_FAMILIES
    return _GROUPED if is_grouped and parameter in _UNSLOTHS_PARAMETERS else _PEFTS


def _auto_mapping(config: Mapping[str, object]) -> Mapping[str, object]:
    mapping = config.get("auto_mapping")
    return mapping if isinstance(mapping, dict) else {}


def _is_declared(config: Mapping[str, object]) -> bool:
    return any(key in source for source in (config, _auto_mapping(config)) for key in UNSLOTH_KEYS)


def _family(layer: Any) -> str:
    """The folder of transformers' `models` that defines a stack's class."""
    return str(type(layer.get_base_layer()).__module__).split(".")[-2]


def _interleaved(b: LazyTensor, experts: int) -> torch.Tensor:
    """Columns `[experts, r]` as columns `[r, experts]`."""
    return b.load().reshape(b.shape[0], experts, -1).transpose(1, 2).reshape(b.shape)


def _is_swapped(stack: _Stack) -> bool | None:
    """Whether `lora_A` is on the side that PEFT now has `lora_B` on; None for a square stack."""
    layer, sides = stack.layer, (stack.a.shape[1], stack.b.shape[0])
    if layer.in_features == layer.out_features:
        return None
    return sides == (layer.out_features, layer.in_features)


def _is_swapped_by(stack: _Stack, config: AdapterConfig) -> bool:
    """Whether the version of PEFT that saved a square stack swapped its sides.

    Up to 0.18, PEFT took the first side for the input; 0.19.0 took the second if a model says that
    its stacks are transposed; only later versions take the side that is the input.
    """
    saved_by = config.raw.get("peft_version")
    version = _version(saved_by)
    is_transposed = getattr(stack.layer.get_base_layer(), "is_transposed", False)
    if version >= (0, 19, 1) or (is_transposed and version < (0, 19, 0)):
        return False
    raise UnsupportedError(
        f"The experts' {stack.layer.parameter_name} is square ({stack.a.shape[1]}), and "
        f"PEFT {saved_by or '(an older version)'}, which saved the adapter, swapped its sides for "
        "some models: the layout is ambiguous.",
        next_step="Merge it with the versions of PEFT and transformers that trained it "
        "(merge_and_unload, save_pretrained) and package the merged folder.",
    )


def _version(text: object) -> tuple[int, ...]:
    """The parts of a version; 0 if there is none: PEFT records its version since 0.18."""
    return tuple(int(part) for part in re.findall(r"\d+", str(text or "0"))[:3])


def _a_of_b(b: LazyTensor, experts: int) -> torch.Tensor:
    """`lora_A` from a `lora_B` on its side; with `_b_of_a`, the same product, transposed."""
    of_experts = b.load().reshape(b.shape[0], -1, experts)  # [side of B, r, experts]
    return of_experts.permute(2, 1, 0).reshape(b.shape[1], b.shape[0]).contiguous()


def _b_of_a(a: LazyTensor, experts: int) -> torch.Tensor:
    """`lora_B` from a `lora_A` on its side."""
    of_experts = a.load().reshape(experts, -1, a.shape[1])  # [experts, r, side of A]
    return of_experts.permute(2, 1, 0).reshape(a.shape[1], a.shape[0]).contiguous()
