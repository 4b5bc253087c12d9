"""A trainer's output folder: its checkpoints, and which of them is meant."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import CorruptFileError, SourceNotFoundError
from packager.files import is_inside, read_json, require_inside

# As the Trainer of transformers names a checkpoint's folder, and torchtune.
CHECKPOINT_PREFIXES = ("checkpoint-", "epoch_", "step_")
_CHECKPOINT = re.compile(rf"(?:{'|'.join(CHECKPOINT_PREFIXES)})(\d{{1,12}})")
_STATE, _LOG = "trainer_state.json", "trainer_log.jsonl"


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


@dataclass(frozen=True)
class TrainerRun:
    """What a Trainer's output folder tells.

    Attributes:
        checkpoints: those that are there, by step.
        best: the name of the one that is recorded as the best, there or not, if any.
        unreadable: why the newest record cannot be read, which leaves the best one unknown.
    """

    checkpoints: tuple[TrainerCheckpoint, ...]
    best: str | None
    unreadable: CorruptFileError | None


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint within a run's folder."""
    return _CHECKPOINT.fullmatch(name) is not None


def list_checkpoints(folder: Path) -> list[TrainerCheckpoint]:
    """The checkpoints in a Trainer's output folder, by step; empty where there are none."""
    return list(read_run(folder).checkpoints)


def read_run(folder: Path) -> TrainerRun:
    """What a Trainer's output folder tells of its checkpoints; nothing where there are none."""
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    }
    if not found:
        return TrainerRun((), None, None)
    newest_first = [path for _, path in sorted(found.items(), reverse=True)]
    states = [path / _STATE for path in (folder, *newest_first) if (path / _STATE).is_file()]
    state, unreadable = _newest_state(states, folder)
    names = [] if unreadable else _recorded_best(state)
    there = {path.name for path in newest_first}
    best = next((name for name in names if name in there), names[0] if names else None)
    history = state.get("log_history")
    logged = _logged(history if isinstance(history, list) else _read_log(folder))
    checkpoints = tuple(
        TrainerCheckpoint(
            folder=path,
            step=step,
            loss=_last(logged, "loss", step),
            eval_loss=_last(logged, "eval_loss", step),
            is_best=path.name == best,
        )
        for step, path in sorted(found.items())
    )
    return TrainerRun(checkpoints, best, unreadable)


def _newest_state(
    states: Iterable[Path], folder: Path
) -> tuple[Mapping[str, object], CorruptFileError | None]:
    """The newest state that can be read, and why that is not the newest of all, if it is not."""
    unreadable = None
    for path in states:
        try:
            return read_json(require_inside(path, folder)), unreadable
        except CorruptFileError as error:
            unreadable = unreadable or error
    return {}, unreadable


def _recorded_best(state: Mapping[str, object]) -> list[str]:
    """The name of the best checkpoint, by each of the two records that a state may have of it."""
    path, step = state.get("best_model_checkpoint"), state.get("best_global_step")
    # The recorded path is the training machine's; only its last part is sure to hold here.
    by_path = re.split(r"[/\\]", path.rstrip("/\\"))[-1] if isinstance(path, str) else ""
    by_step = f"{CHECKPOINT_PREFIXES[0]}{step}" if type(step) is int and step > 0 else ""
    return [name for name in (by_path, by_step) if name]


def _read_log(folder: Path) -> list[object]:
    """LLaMA-Factory's log, a JSON object a line; a line that was cut off is passed over."""
    path = folder / _LOG
    if not (path.is_file() and is_inside(path, folder)):
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
        CorruptFileError: if what records the best one cannot be read.
    """
    run = read_run(folder)
    if wanted == "best":
        return _best(folder, run), f"the best by {_STATE}"
    if wanted == "last" and run.checkpoints:
        note = f"; {run.unreadable.message.rstrip('.')}" if run.unreadable is not None else ""
        return run.checkpoints[-1], f"the last of {len(run.checkpoints)} checkpoints{note}"
    chosen = next((item for item in run.checkpoints if str(item.step) == wanted), None)
    if chosen is None:
        names = ", ".join(str(item.step) for item in run.checkpoints) or "none"
        raise SourceNotFoundError(
            f"{folder} has no checkpoint {wanted!r}; checkpoints there: {names}.",
            next_step="Choose one of them with --checkpoint N, best or last.",
        )
    return chosen, "as asked with --checkpoint"


def _best(folder: Path, run: TrainerRun) -> TrainerCheckpoint:
    best = next((item for item in run.checkpoints if item.is_best), None)
    if best is not None:
        return best
    names = ", ".join(map(_with_loss, run.checkpoints)) or "none"
    next_step = "Choose one with --checkpoint N, or --checkpoint last."
    if run.unreadable is not None:
        raise CorruptFileError(
            f"{run.unreadable.message.rstrip('.')}: which checkpoint is the best is not known; "
            f"checkpoints there: {names}.",
            next_step=next_step,
        )
    if run.best is not None:
        raise SourceNotFoundError(
            f"{folder} records {run.best} as the best, which is not there: deleted "
            f"(save_total_limit), or never saved; checkpoints there: {names}.",
            next_step=next_step,
        )
    raise SourceNotFoundError(
        f"{folder} records no best checkpoint (`best_model_checkpoint` in {_STATE}); "
        f"checkpoints there: {names}.",
        next_step=next_step,
    )


def _with_loss(item: TrainerCheckpoint) -> str:
    return str(item.step) + (
        f" (eval loss {item.eval_loss:g})" if item.eval_loss is not None else ""
    )
