"""Opening a PEFT adapter's folder: its configuration, checked, and its weight file."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import (
    RESTORE_CONFIG,
    CorruptFileError,
    MissingWeightsError,
    UnsupportedError,
)
from packager.files import require_inside
from packager.model.adapter import ADAPTER_CONFIG_NAME, WEIGHT_NAMES, Adapter, AdapterConfig
from packager.model.model_file import ModelFile
from packager.model.tensor_file import TensorFile, open_tensor_file, require_filled
from packager.source.methods import find_refusal, method_name


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration, and the header of its weights.

    Raises:
        MissingWeightsError: if there is a configuration without weights.
        CorruptFileError: if either file cannot be read.
        UnsupportedError: with the method or option that cannot be merged, and why.
    """
    path = require_inside(folder / ADAPTER_CONFIG_NAME, folder)
    file = ModelFile(path)
    config = file.json
    _refuse_mlx(path, config)
    refusal = find_refusal(config)
    if refusal is not None:
        raise UnsupportedError(
            f"{path} uses {refusal.what}, which {refusal.why}: it cannot be merged.",
            next_step=refusal.next_step,
        )
    weights = _open_weights(folder)
    strength = _read_strength(path, config)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    typed = AdapterConfig(
        file=file,
        raw=config,
        method=method_name(config),
        rank=strength.rank,
        alpha=strength.alpha,
        base_model_name_or_path=base if isinstance(base, str) and base else None,
        revision=revision if isinstance(revision, str) and revision else None,
    )
    return Adapter(folder, typed, weights)


def _open_weights(folder: Path) -> TensorFile:
    names = [name for name in WEIGHT_NAMES if (folder / name).is_file()]
    if not names:
        native = sorted(folder.glob("adapter*.pt"))
        if native:
            # torchtune has its own names, and its own order of rows in queries and keys.
            raise UnsupportedError(
                f"{folder} has the adapter only in torchtune's own format ({native[0].name}).",
                next_step="Save it with torchtune's FullModelHFCheckpointer, which also writes "
                "adapter_model.safetensors in PEFT's format, or package the merged model.",
            )
        if pieces := sorted(folder.glob("adapter_model-*-of-*.safetensors")):
            raise _in_pieces(folder, pieces)
        raise MissingWeightsError(
            f"{folder} has {ADAPTER_CONFIG_NAME}, but no {WEIGHT_NAMES[0]}.",
            next_step="Save the adapter again with save_pretrained, or name the folder that has "
            "its weights.",
        )
    return require_filled(open_tensor_file(require_inside(folder / names[0], folder)))


def _in_pieces(folder: Path, pieces: Sequence[Path]) -> UnsupportedError:
    """The error for shards that transformers writes with a small `max_shard_size`.

    PEFT does not read them, and ftpack does not join them: an older save may have left more shards,
    and the index has the name of a full model's, so that no file says which shards belong to it.
    """
    code = (
        "from safetensors.torch import load_file, save_file; save_file({name: tensor for piece in "
        f"{json.dumps([str(path) for path in pieces])} for name, tensor in load_file(piece).items()"
        f'}}, {json.dumps(str(folder / WEIGHT_NAMES[0]))}, metadata={{"format": "pt"}})'
    )
    return UnsupportedError(
        f"{folder} has the adapter in {len(pieces)} pieces ({pieces[0].name}, ...), which PEFT "
        f"does not read, but no {WEIGHT_NAMES[0]}.",
        next_step=f"Join them with `python -c {shlex.quote(code)}`, or save again with a larger "
        "max_shard_size.",
    )


def _refuse_mlx(path: Path, config: Mapping[str, object]) -> None:
    """Refuse adapters of mlx-lm, which have PEFT's file name but another format."""
    if "peft_type" in config or not config.keys() & {"fine_tune_type", "lora_parameters"}:
        return
    base, folder = config.get("model"), path.parent
    name = base if isinstance(base, str) and base else "BASE"
    target = folder.with_name(f"{folder.absolute().name}-fused")
    command = shlex.join(
        ["mlx_lm.fuse", "--model", name, "--adapter-path", str(folder), "--save-path", str(target)]
    )
    raise UnsupportedError(
        f"{path} belongs to mlx-lm (it has `lora_parameters`, but no `peft_type`), not to PEFT.",
        next_step=f"Fuse it with `{command}` (with --dequantize if its base is quantized), then "
        f"package {target}.",
    )


@dataclass(frozen=True)
class _Strength:
    """The rank and alpha, which a LoRA must have; many other methods have neither."""

    rank: int | None
    alpha: float | None


def _read_strength(path: Path, config: Mapping[str, object]) -> _Strength:
    """The rank and alpha of a configuration.

    Raises:
        CorruptFileError: if one of them has a value that training cannot have used.
    """
    is_lora = config.get("peft_type") == "LORA"
    rank: Any = config.get("target_r" if config.get("peft_type") == "ADALORA" else "r")
    alpha_key = "lora_alpha" if is_lora else "alpha"
    alpha: Any = config.get(alpha_key)
    has_rank = type(rank) is int and rank > 0
    has_alpha = type(alpha) in (int, float) and math.isfinite(alpha) and alpha != 0
    if (is_lora and not has_rank) or not (has_alpha or (alpha is None and not is_lora)):
        raise CorruptFileError(
            f"{path}: `r` is {rank!r} and `{alpha_key}` is {alpha!r}; the rank must be a "
            "positive integer, alpha a number other than 0.",
            next_step=RESTORE_CONFIG,
        )
    return _Strength(rank if has_rank else None, alpha if has_alpha else None)
