"""Which tensors a LoRA changes, and how: by names and shapes, where these leave no doubt.

Asking PEFT (`peft_targets`) imports transformers and peft and builds a model's module tree, which
takes several seconds and some 300 MiB. Most adapters are so plain that it is not needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo

PREFIX = "base_model.model."
# Only a module outside of the numbered layers can be tied.
_LAYER = re.compile(r"(^|\.)\d+\.")
_KEY = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
# Settings that a plain merge reads, and those that do not change it. Any other setting that is on
# is PEFT's to interpret.
_UNDERSTOOD = frozenset({
    "base_model_name_or_path", "bias", "inference_mode", "init_lora_weights",
    "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora",
})  # fmt: skip


@dataclass(frozen=True)
class LoraTarget:
    """What is added to a tensor: `lora_B @ lora_A * scaling`.

    Attributes:
        a_name: the adapter's tensor `lora_A`, `[r, in_features]`.
        b_name: the adapter's tensor `lora_B`, `[out_features, r]`.
        scaling: `lora_alpha / r`, or `lora_alpha / sqrt(r)` for rsLoRA.
        is_transposed: whether the base keeps the weight as `[in_features, out_features]`
            (`fan_in_fan_out`, transformers' Conv1D).
    """

    a_name: str
    b_name: str
    scaling: float
    is_transposed: bool


def targets_by_name(base: Checkpoint, adapter: Adapter) -> dict[str, LoraTarget] | None:
    """What an adapter adds to each tensor of the base, by its name; None where only PEFT can tell.

    It is certain for a LoRA that is plain by its configuration, tunes exactly the matrices of the
    base that `target_modules` names, none of them tied to another, and fits in every shape.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: a LoRA.
    """
    config, tensors = adapter.config.raw, adapter.weights.tensors
    rank, alpha, wanted = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        return None
    if not isinstance(wanted, list) or any(config[k] for k in config.keys() - _UNDERSTOOD):
        return None
    tuned = _tuned_modules(tensors)
    if tuned is None or tuned != _wanted_modules(base, wanted):
        return None
    # Some checkpoints hold a head although it is tied to the embedding.
    if not all(_LAYER.search(module) for module in tuned) and not _is_untied(base):
        return None
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    targets = {}
    has_oblong = False
    for module in tuned:
        target = LoraTarget(
            f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight", scaling, False
        )
        rows, columns = base.tensors[f"{module}.weight"].shape
        if tensors[target.a_name].shape != (rank, columns):
            return None
        if tensors[target.b_name].shape != (rows, rank):
            return None
        has_oblong |= rows != columns
        targets[f"{module}.weight"] = target
    # Square matrices alone would fit transposed as well.
    return targets if has_oblong else None


def _is_untied(base: Checkpoint) -> bool:
    """Whether `config.json` says that embeddings are not tied; each model has its own default."""
    parts = base.config.parts
    values = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    return bool(values) and all(value is False for value in values)


def _tuned_modules(tensors: Mapping[str, TensorInfo]) -> set[str] | None:
    """The modules that have both matrices, or None if there is any other tensor."""
    modules: dict[str, set[str]] = {"A": set(), "B": set()}
    for name in tensors:
        match = _KEY.fullmatch(name)
        if match is None:
            return None
        modules[match["matrix"]].add(match["module"])
    return modules["A"] if modules["A"] == modules["B"] else None


def _wanted_modules(base: Checkpoint, wanted: list[object]) -> set[str] | None:
    """The base's matrices that `target_modules` names, or None if one of the names matches none."""
    modules = set()
    used = set()
    ends = {str(target) for target in wanted}
    for name, info in base.tensors.items():
        module = name.removesuffix(".weight")
        parts = module.split(".")
        matching = {".".join(parts[i:]) for i in range(len(parts))} & ends
        if matching and module != name and len(info.shape) == 2:
            modules.add(module)
            used |= matching
    return modules if used == ends else None
