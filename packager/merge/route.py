"""How one adapter is merged: as a plain LoRA by ftpack itself, or through PEFT's layers."""

from __future__ import annotations

from packager.merge.merged import Merged
from packager.merge.peft.peft_merged import PeftMerged
from packager.merge.plain.lora import LoraMerged
from packager.merge.plain.peft_targets import NotLinearError
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint

# Settings that leave a LoRA a sum of the weight and one product of two matrices. What is set and
# not listed here is PEFT's to do.
_PLAIN = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def merge_one(base: Checkpoint, adapter: Adapter, device: str) -> Merged:
    """A base with an adapter merged in; no weight of the base is read yet.

    A plain LoRA on linear layers takes the fast way, which gives the same bytes: some rows at a
    time, and as a rule without importing PEFT. PEFT's layers do the rest, one module at a time.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: what to merge.
        device: where to merge, as torch names it (`cpu`, `cuda`, `cuda:1`).

    Raises:
        AdapterMismatchError: listing adapter tensors that nothing would use, or targeted modules
            that have none.
        BaseMismatchError: listing the shapes that differ.
        NonFiniteError: naming a tensor of the adapter with NaN or Inf.
        UnsupportedError: with the reason of PEFT or transformers.
    """
    if is_plain_lora(adapter):
        try:
            return LoraMerged(base, adapter, device)
        except NotLinearError:
            pass
    return PeftMerged(base, adapter, device)


def is_plain_lora(adapter: Adapter) -> bool:
    """Whether an adapter is a LoRA without anything besides `lora_A` and `lora_B` matrices."""
    config, names = adapter.config.raw, adapter.weights.tensors
    return (
        adapter.config.peft_type == "LORA"
        and all(key in _PLAIN for key, value in config.items() if value)
        and config.get("bias") in (None, "none")
        and config.get("init_lora_weights", True) in _PLAIN_INITS
        and all(".lora_A." in name or ".lora_B." in name for name in names)
        # transformers 5 stacks experts: PEFT rounds their change before it adds it, then again.
        and not any(".experts." in name for name in names)
    )
