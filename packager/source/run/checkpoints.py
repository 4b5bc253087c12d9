"""The training checkpoints in a run's folder, and the choice among them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import CorruptFileError, SourceNotFoundError
from packager.files import is_inside, read_json, require_inside

# How transformers' Trainer and torchtune name the folder of a training checkpoint.
CHECKPOINT_PREFIXES = ("checkpoint-", "epoch_", "step_")
_CHECKPOINT = re.compile(rf"(?:{'|'.join(CHECKPOINT_PREFIXES)})(\d{{1,12}})")
_STATE, _LOG = "trainer_state.json", "trainer_log.jsonl"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """One `checkpoint-N` folder of a Trainer, or `epoch_N` or `step_N` of torchtune.

    Attributes:
        folder: its folder.
        step: N.
        loss: the last training loss that was logged up to this step, if any.
        eval_loss: the last evaluation loss that was logged up to this step, if any.
        is_best: whether `trainer_state.json` records it as the best one.
    """

    folder: Path
    step: int
    loss: float | None
    eval_loss: float | None
    is_best: bool


@dataclass(frozen=True)
class TrainingRun:
    """The training checkpoints of a run.

    Attributes:
        checkpoints: those that exist, by step.
        best: the name of the one that is recorded as the best, whether it exists or not, if any.
        unreadable: why the newest record cannot be read, so that the best one is unknown.
    """

    checkpoints: tuple[TrainingCheckpoint, ...]
    best: str | None
    unreadable: CorruptFileError | None


@dataclass(frozen=True)
class CheckpointChoice:
    """A training checkpoint, and the reason for choosing it, for people."""

    checkpoint: TrainingCheckpoint
    reason: str


@dataclass(frozen=True)
class _State:
    """The newest readable `trainer_state.json`, and why a newer one cannot be read, if there is."""

    values: Mapping[str, object]
    unreadable: CorruptFileError | None


@dataclass(frozen=True)
class _LogEntry:
    step: int
    values: Mapping[object, object]


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder has the name of a training checkpoint."""
    return _CHECKPOINT.fullmatch(name) is not None


def list_checkpoints(folder: Path) -> list[TrainingCheckpoint]:
    """The training checkpoints in a run's folder, by step; empty if there are none."""
    return list(read_run(folder).checkpoints)


def read_run(folder: Path) -> TrainingRun:
    """The training checkpoints in a run's folder, and the record of the best one."""
    folders = {
        int(match[1]): path
        for path in folder.iterdir()
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    }
    if not folders:
        return TrainingRun((), None, None)
    newest_first = [path for _, path in sorted(folders.items(), reverse=True)]
    states = [path / _STATE for path in (folder, *newest_first) if (path / _STATE).is_file()]
    state = _newest_state(states, folder)
    recorded = [] if state.unreadable else _recorded_best(state.values)
    existing = {path.name for path in newest_first}
    best = next((name for name in recorded if name in existing), recorded[0] if recorded else None)
    history = state.values.get("log_history")
    entries = _log_entries(history if isinstance(history, list) else _read_log(folder))
    checkpoints = tuple(
        TrainingCheckpoint(
            folder=path,
            step=step,
            loss=_last_value(entries, "loss", step),
            eval_loss=_last_value(entries, "eval_loss", step),
            is_best=path.name == best,
        )
        for step, path in sorted(folders.items())
    )
    return TrainingRun(checkpoints, best, state.unreadable)


def _newest_state(states: Iterable[Path], folder: Path) -> _State:
    unreadable = None
    for path in states:
        try:
            return _State(read_json(require_inside(path, folder)), unreadable)
        except CorruptFileError as error:
            unreadable = unreadable or error
    return _State({}, unreadable)


def _recorded_best(state: Mapping[str, object]) -> list[str]:
    """The names of the best training checkpoint in the two records that a state may have of it."""
    path, step = state.get("best_model_checkpoint"), state.get("best_global_step")
    # The recorded path belongs to the training machine; only its last part must hold here.
    by_path = re.split(r"[/\\]", path.rstrip("/\\"))[-1] if isinstance(path, str) else ""
    by_step = f"{CHECKPOINT_PREFIXES[0]}{step}" if type(step) is int and step > 0 else ""
    return [name for name in (by_path, by_step) if name]


def _read_log(folder: Path) -> list[object]:
    """LLaMA-Factory's log, one JSON object per line; skips a truncated line."""
    path = folder / _LOG
    if not (path.is_file() and is_inside(path, folder)):
        return []
    entries: list[object] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append({**entry, "step": entry.get("current_steps")})
    return entries


def _log_entries(history: Iterable[object]) -> list[_LogEntry]:
    """The entries of a log that record their step."""
    return [
        _LogEntry(step, entry)
        for entry in history
        if isinstance(entry, dict) and isinstance(step := entry.get("step"), int)
    ]


def _last_value(entries: Iterable[_LogEntry], key: str, step: int) -> float | None:
    """The last finite value up to a step: NaN is not JSON, and cannot be compared."""
    values = [
        float(value)
        for entry in entries
        if entry.step <= step
        and isinstance(value := entry.values.get(key), int | float)
        and math.isfinite(value)
    ]
    return values[-1] if values else None


def choose_checkpoint(folder: Path, wanted: str) -> CheckpointChoice:
    """The training checkpoint that `wanted` (a step, `best` or `last`) means.

    Raises:
        SourceNotFoundError: with the training checkpoints that exist.
        CorruptFileError: if the record of the best one cannot be read.
    """
    run = read_run(folder)
    if wanted == "best":
        return CheckpointChoice(_best(folder, run), f"the best by {_STATE}")
    if wanted == "last" and run.checkpoints:
        note = f"; {run.unreadable.message.rstrip('.')}" if run.unreadable is not None else ""
        reason = f"the last of {len(run.checkpoints)} training checkpoints{note}"
        return CheckpointChoice(run.checkpoints[-1], reason)
    chosen = next((item for item in run.checkpoints if str(item.step) == wanted), None)
    if chosen is None:
        names = ", ".join(str(item.step) for item in run.checkpoints) or "none"
        raise SourceNotFoundError(
            f"{folder} has no training checkpoint {wanted!r}; it has {names}.",
            next_step="Choose one of them with --checkpoint N, best or last.",
        )
    return CheckpointChoice(chosen, "chosen with --checkpoint")


def _best(folder: Path, run: TrainingRun) -> TrainingCheckpoint:
    best = next((item for item in run.checkpoints if item.is_best), None)
    if best is not None:
        return best
    existing = f"it has {', '.join(map(_with_loss, run.checkpoints)) or 'none'}"
    next_step = "Choose one with --checkpoint N, or --checkpoint last."
    if run.unreadable is not None:
        raise CorruptFileError(
            f"{run.unreadable.message.rstrip('.')}, so that the best training checkpoint of "
            f"{folder} is unknown; {existing}.",
            next_step=next_step,
        )
    if run.best is not None:
        raise SourceNotFoundError(
            f"{folder} records {run.best} as the best training checkpoint, which does not exist: "
            f"it was deleted (save_total_limit) or never saved; {existing}.",
            next_step=next_step,
        )
    raise SourceNotFoundError(
        f"{folder} records no best training checkpoint (`best_model_checkpoint` in {_STATE}); "
        f"{existing}.",
        next_step=next_step,
    )


def _with_loss(item: TrainingCheckpoint) -> str:
    return str(item.step) + (
        f" (eval loss {item.eval_loss:g})" if item.eval_loss is not None else ""
    )
