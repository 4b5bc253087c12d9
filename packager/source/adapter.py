"""A PEFT adapter folder: its configuration as a typed object, and its weight file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.checkpoint import TensorFile, open_tensor_file
from packager.errors import CorruptFileError, MissingWeightsError, UnsupportedError
from packager.files import read_json

CONFIG_NAME = "adapter_config.json"
_WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")

# Initialisations that leave the base's weights as they were, so that the saved matrices are the
# whole change. The others (pissa, olora, corda, loftq, ...) also alter the base.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """An adapter that ftpack can merge.

    Attributes:
        folder: where `adapter_config.json` is.
        weights: its tensor file; nothing of it is read yet.
        method: the method's name for people, such as `LoRA` or `rsLoRA`.
        rank: `r` of the configuration.
        alpha: `lora_alpha` of the configuration.
        target_modules: the targets as configured, for people.
        base_model_name_or_path: what the trainer recorded as base, if anything.
        revision: the base's revision as recorded, if any.
    """

    folder: Path
    weights: TensorFile
    method: str
    rank: int
    alpha: float
    target_modules: str
    base_model_name_or_path: str | None
    revision: str | None


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration, and the header of its weights.

    Raises:
        MissingWeightsError: if there is a configuration without weights.
        CorruptFileError: if either file cannot be read.
        UnsupportedError: naming the method or option that cannot be merged.
    """
    path = folder / CONFIG_NAME
    config = read_json(path)
    _refuse_unsupported(path, config)
    names = [name for name in _WEIGHT_NAMES if (folder / name).is_file()]
    if not names:
        raise MissingWeightsError(
            f"{folder} has {CONFIG_NAME}, but no {_WEIGHT_NAMES[0]}.",
            next_step="Save the adapter again with save_pretrained, or name the folder that has "
            "its weights.",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise CorruptFileError(
            f"{path}: `r` is {rank!r} and `lora_alpha` is {alpha!r}; both must be numbers.",
            next_step="Restore the configuration from the training run.",
        )
    targets = config.get("target_modules")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return Adapter(
        folder=folder,
        weights=open_tensor_file(folder / names[0]),
        method="rsLoRA" if config.get("use_rslora") else "LoRA",
        rank=rank,
        alpha=alpha,
        target_modules=_summary(targets),
        base_model_name_or_path=base if isinstance(base, str) and base else None,
        revision=revision if isinstance(revision, str) and revision else None,
    )


def _refuse_unsupported(path: Path, config: dict[str, object]) -> None:
    """Refuse by name what a merge of plain LoRA matrices would get wrong."""
    method = config.get("peft_type")
    reasons = {
        f"`peft_type` {method!r}": method != "LORA",
        "`use_dora`": bool(config.get("use_dora")),
        "`use_qalora`": bool(config.get("use_qalora")),
        "`lora_bias`": bool(config.get("lora_bias")),
        f"`bias` {config.get('bias')!r}": config.get("bias") not in (None, "none"),
        "`modules_to_save`": bool(config.get("modules_to_save")),
        "`trainable_token_indices`": bool(config.get("trainable_token_indices")),
        "`target_parameters`": bool(config.get("target_parameters")),
        "`layer_replication`": bool(config.get("layer_replication")),
        "`megatron_config`": bool(config.get("megatron_config")),
        "`alora_invocation_tokens`": bool(config.get("alora_invocation_tokens")),
        f"`init_lora_weights` {config.get('init_lora_weights')!r}": (
            config.get("init_lora_weights", True) not in _PLAIN_INITS
        ),
    }
    found = [reason for reason, is_used in reasons.items() if is_used]
    if found:
        raise UnsupportedError(
            f"{path} uses {' and '.join(found)}, which ftpack does not merge: it takes LoRA and "
            "rsLoRA on linear layers.",
            next_step="Merge it with PEFT (merge_and_unload, save_pretrained) and package the "
            "merged folder.",
        )


def _summary(targets: object) -> str:
    """The kinds of targeted modules: newer PEFT lists every single module by its full name."""
    if not isinstance(targets, list):
        return str(targets)
    return ", ".join(sorted({str(target).rpartition(".")[2] for target in targets}))
