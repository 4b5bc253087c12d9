"""A PEFT adapter folder: its configuration as a typed object, and its weight file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import CorruptFileError, MissingWeightsError, UnsupportedError
from packager.files import read_json, require_inside
from packager.source.methods import find_refusal, method_name
from packager.tensor_file import TensorFile, open_tensor_file

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Adapter:
    """An adapter that ftpack can merge.

    Attributes:
        folder: where `adapter_config.json` is.
        weights: its tensor file; nothing of it is read yet.
        method: the method's name for people, such as `LoRA` or `DoRA`.
        rank: `r` of the configuration, where the method has one.
        alpha: `lora_alpha` or `alpha` of the configuration, where the method has one.
        target_modules: the targets as configured, for people.
        base_model_name_or_path: what the trainer recorded as base, if anything.
        revision: the base's revision as recorded, if any.
    """

    folder: Path
    weights: TensorFile
    method: str
    rank: int | None
    alpha: float | None
    target_modules: str
    base_model_name_or_path: str | None
    revision: str | None


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration, and the header of its weights.

    Raises:
        MissingWeightsError: if there is a configuration without weights.
        CorruptFileError: if either file cannot be read.
        UnsupportedError: naming the method or option that cannot be merged, and why.
    """
    path = require_inside(folder / CONFIG_NAME, folder)
    config = read_json(path)
    refusal = find_refusal(config)
    if refusal is not None:
        raise UnsupportedError(
            f"{path} uses {refusal.what}, which {refusal.why}: it cannot be merged.",
            next_step=refusal.next_step,
        )
    weights = _open_weights(folder)
    rank, alpha = _read_ranks(path, config)
    targets = config.get("target_modules")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return Adapter(
        folder=folder,
        weights=weights,
        method=method_name(config),
        rank=rank,
        alpha=alpha,
        target_modules=_summary(targets),
        base_model_name_or_path=base if isinstance(base, str) and base else None,
        revision=revision if isinstance(revision, str) and revision else None,
    )


def _open_weights(folder: Path) -> TensorFile:
    names = [name for name in WEIGHT_NAMES if (folder / name).is_file()]
    if not names:
        native = sorted(folder.glob("adapter*.pt"))
        if native:
            # Their names and, in queries and keys, their rows are in torchtune's own order.
            raise UnsupportedError(
                f"{folder} has the adapter only in torchtune's own form ({native[0].name}).",
                next_step="Save it with torchtune's FullModelHFCheckpointer, which also writes "
                "adapter_model.safetensors in PEFT's form, or package the merged model.",
            )
        raise MissingWeightsError(
            f"{folder} has {CONFIG_NAME}, but no {WEIGHT_NAMES[0]}.",
            next_step="Save the adapter again with save_pretrained, or name the folder that has "
            "its weights.",
        )
    weights = open_tensor_file(require_inside(folder / names[0], folder))
    empty = [info.name for info in weights.tensors.values() if info.shape == (0,)]
    if empty:
        raise MissingWeightsError(
            f"{weights.path} holds {len(empty)} tensors without any element, such as "
            f"{empty[0]!r}: DeepSpeed ZeRO-3 has saved its placeholders.",
            next_step="Set stage3_gather_16bit_weights_on_model_save in DeepSpeed's configuration "
            "and save again, or join the shards of a checkpoint with its zero_to_fp32.py.",
        )
    return weights


def _read_ranks(path: Path, config: dict[str, object]) -> tuple[int | None, float | None]:
    """The rank and alpha, which a LoRA must have and many another method has not.

    Raises:
        CorruptFileError: if one of them is no number that training can have had.
    """
    is_lora = config.get("peft_type") == "LORA"
    rank: Any = config.get("target_r" if config.get("peft_type") == "ADALORA" else "r")
    alpha_key = "lora_alpha" if is_lora else "alpha"
    alpha: Any = config.get(alpha_key)
    has_rank = type(rank) is int and rank > 0
    has_alpha = type(alpha) in (int, float) and math.isfinite(alpha) and alpha != 0
    if (is_lora and not has_rank) or not (has_alpha or (alpha is None and not is_lora)):
        raise CorruptFileError(
            f"{path}: `r` is {rank!r} and `{alpha_key}` is {alpha!r}; the one must be a whole "
            "number above 0, the other a number that is not 0.",
            next_step="Restore the configuration from the training run.",
        )
    return rank if has_rank else None, alpha if has_alpha else None


def _summary(targets: object) -> str:
    """The kinds of targeted modules: newer PEFT lists every single module by its full name."""
    if not isinstance(targets, list):
        return str(targets)
    return ", ".join(sorted({str(target).rpartition(".")[2] for target in targets}))
