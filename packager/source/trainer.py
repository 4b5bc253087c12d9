"""A trainer's output folder: its checkpoints, and which of them is meant."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import SourceNotFoundError
from packager.files import read_json

# As the Trainer of transformers names a checkpoint's folder, and torchtune.
CHECKPOINT_PREFIXES = ("checkpoint-", "epoch_", "step_")
_CHECKPOINT = re.compile(rf"(?:{'|'.join(CHECKPOINT_PREFIXES)})(\d{{1,12}})")
_LOG = "trainer_log.jsonl"


@dataclass(frozen=True)
class TrainerCheckpoint:
    """One `checkpoint-N` folder of a Trainer, or `epoch_N` or `step_N` of torchtune.

    Attributes:
        folder: where it is.
        step: N.
        loss: the last training loss that was logged up to this step, if any.
        eval_loss: the last evaluation loss that was logged up to this step, if any.
        is_best: whether `trainer_state.json` names it as the best one.
    """

    folder: Path
    step: int
    loss: float | None
    eval_loss: float | None
    is_best: bool


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint within a run's folder."""
    return _CHECKPOINT.fullmatch(name) is not None


def list_checkpoints(folder: Path) -> list[TrainerCheckpoint]:
    """The checkpoints in a Trainer's output folder, by step; empty where there are none."""
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    }
    if not found:
        return []
    newest_first = [path for _, path in sorted(found.items(), reverse=True)]
    states = [path / "trainer_state.json" for path in (folder, *newest_first)]
    state = next((read_json(path) for path in states if path.is_file()), {})
    best = state.get("best_model_checkpoint")
    # The recorded path is the training machine's; only its last part is sure to hold here.
    best_name = re.split(r"[/\\]", best.rstrip("/\\"))[-1] if isinstance(best, str) else None
    history = state.get("log_history")
    logged = _logged(history if isinstance(history, list) else _read_log(folder / _LOG))
    return [
        TrainerCheckpoint(
            folder=path,
            step=step,
            loss=_last(logged, "loss", step),
            eval_loss=_last(logged, "eval_loss", step),
            is_best=path.name == best_name,
        )
        for step, path in sorted(found.items())
    ]


def _read_log(path: Path) -> list[object]:
    """LLaMA-Factory's log, a JSON object a line; a line that was cut off is passed over."""
    if not path.is_file():
        return []
    found: list[object] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            found.append({**entry, "step": entry.get("current_steps")})
    return found


def _logged(history: Iterable[object]) -> list[tuple[int, Mapping[object, object]]]:
    """The log's entries that tell their step, with it."""
    return [
        (step, entry)
        for entry in history
        if isinstance(entry, dict) and isinstance(step := entry.get("step"), int)
    ]


def _last(
    logged: Iterable[tuple[int, Mapping[object, object]]], key: str, step: int
) -> float | None:
    """The last finite value up to a step: NaN is no JSON, and tells nothing to compare by."""
    values = [
        float(value)
        for logged_step, entry in logged
        if logged_step <= step
        and isinstance(value := entry.get(key), int | float)
        and math.isfinite(value)
    ]
    return values[-1] if values else None


def choose_checkpoint(folder: Path, wanted: str) -> tuple[TrainerCheckpoint, str]:
    """The checkpoint that `wanted` (a step, `best` or `last`) means, and why.

    Raises:
        SourceNotFoundError: listing the checkpoints that there are.
    """
    checkpoints = list_checkpoints(folder)
    names = ", ".join(str(item.step) for item in checkpoints) or "none"
    if wanted == "last" and checkpoints:
        return checkpoints[-1], f"the last of {len(checkpoints)} checkpoints"
    if wanted == "best":
        best = next((item for item in checkpoints if item.is_best), None)
        if best is None:
            raise SourceNotFoundError(
                f"{folder} records no best checkpoint (`best_model_checkpoint` in "
                f"trainer_state.json); checkpoints there: {names}.",
                next_step="Choose one with --checkpoint N, or --checkpoint last.",
            )
        return best, "the best by trainer_state.json"
    chosen = next((item for item in checkpoints if str(item.step) == wanted), None)
    if chosen is None:
        raise SourceNotFoundError(
            f"{folder} has no checkpoint {wanted!r}; checkpoints there: {names}.",
            next_step="Choose one of them with --checkpoint N, best or last.",
        )
    return chosen, "as asked with --checkpoint"
