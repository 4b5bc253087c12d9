"""Weights that a parallel training run has left in pieces, and the command that joins them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from packager.errors import UnsupportedError

_GLOBAL_STEP = re.compile(r"global_step\d+")
_ZERO_SCRIPT = "zero_to_fp32.py"
_WHOLE = (
    "adapter_model.safetensors", "adapter_model.bin",
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def refuse_shards(folder: Path) -> None:
    """Refuse a folder whose only weights are a parallel run's pieces.

    Optimizer states in pieces beside whole weights, as most checkpoints have them, do no harm.

    Raises:
        UnsupportedError: naming the pieces, and the command that makes whole weights of them.
    """
    if not folder.is_dir() or any((folder / name).is_file() for name in _WHOLE):
        return
    if (pieces := _fsdp_folder(folder)) is not None:
        target = folder if pieces != folder else folder.parent
        raise UnsupportedError(
            f"{folder} holds FSDP shards ({pieces.name}, .distcp files), and no whole weights.",
            next_step=f"Join them with `accelerate merge-weights {_quoted(pieces)} "
            f"{_quoted(target)}`, which writes model.safetensors; the folder needs the base's "
            "config.json and tokenizer beside it.",
        )
    if (step := _deepspeed_folder(folder)) is not None:
        top = folder if step != folder else folder.parent
        script = f"{_quoted(top / _ZERO_SCRIPT)} {_quoted(top)} {_quoted(top)}"
        has_script = (top / _ZERO_SCRIPT).is_file()
        raise UnsupportedError(
            f"{folder} holds DeepSpeed shards ({step.name}), and no whole weights.",
            next_step=f"Join them with `python {script} --safe_serialization`"
            + ("" if has_script else f" ({_ZERO_SCRIPT} comes with deepspeed)")
            + ", then package that folder; it needs config.json and the tokenizer beside it.",
        )


def _fsdp_folder(folder: Path) -> Path | None:
    """The folder of the model's `.distcp` files: the optimizer's have another name."""
    inside = sorted(folder.glob("pytorch_model_fsdp*"))
    found = (path for path in (*inside, folder) if any(path.glob("*.distcp")))
    return next(found, None)


def _deepspeed_folder(folder: Path) -> Path | None:
    if _GLOBAL_STEP.fullmatch(folder.name) and any(folder.glob("*_states.pt")):
        return folder
    steps = [path for path in folder.iterdir() if _GLOBAL_STEP.fullmatch(path.name)]
    if steps:
        return max(steps, key=lambda path: int(path.name.removeprefix("global_step")))
    return folder if (folder / _ZERO_SCRIPT).is_file() else None


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
