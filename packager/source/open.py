"""Opening the source: an adapter or a full model, from a folder, the Hub or ModelScope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packager.errors import MissingWeightsError, NotAModelError, SourceNotFoundError
from packager.files import existing_folder, require_inside
from packager.model.adapter import ADAPTER_CONFIG_NAME, Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import CONFIG_NAME
from packager.model.model_file import ModelFile
from packager.progress import Progress
from packager.source.adapter_folder import open_adapter
from packager.source.hub.completeness import is_complete_source
from packager.source.hub.hub import is_hub_id, obtain
from packager.source.hub.hub_checkpoint import obtain_checkpoint
from packager.source.hub.modelscope import SCHEME, download_from_modelscope
from packager.source.model_folder import config_file, open_model
from packager.source.run.checkpoints import choose_checkpoint, list_checkpoints, read_run
from packager.source.run.folders import find_describing_files, run_folders
from packager.source.run.record import Training, read_training
from packager.source.run.shards import refuse_shards

_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Source:
    """A fine-tune: an adapter or a full model.

    Attributes:
        given: the text that the user typed.
        folder: the folder of the adapter or model.
        adapter: the adapter, or None for a full model.
        model: the full model, or None for an adapter.
        model_id: the Hub id, or ModelScope's with its scheme, if it came from there.
        revision: the commit of the Hub's snapshot; for ModelScope the revision as asked for.
        reason: what was chosen and why, for people.
        files: the files beside the weights, by name, with the run's tokenizer if it lies above.
    """

    given: str
    folder: Path
    adapter: Adapter | None
    model: FolderCheckpoint | None
    model_id: str | None
    revision: str | None
    reason: str
    files: Mapping[str, ModelFile]

    @cached_property
    def training(self) -> Training | None:
        """The record of the training run, if it left one."""
        return read_training(self.folder, self.model.config if self.model is not None else None)


@dataclass(frozen=True)
class _Located:
    """The folder of what the user gave, with its id and revision if it came from the network."""

    folder: Path
    model_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class _Choice:
    """The folder of an adapter or model, and a note on why it was chosen, for people."""

    folder: Path
    note: str


def open_source(
    given: str, checkpoint: str | None, revision: str | None, progress: Progress
) -> Source:
    """The fine-tune in a folder, a training output, or a model of the Hub or ModelScope.

    Args:
        given: a folder, a Hub id, or `modelscope://ORG/NAME`.
        checkpoint: a training checkpoint (a step, `best` or `last`); None for the final save.
        revision: the branch, tag or commit of an id.
        progress: receives downloads.

    Raises:
        SourceNotFoundError: if there is no such folder, training checkpoint or id.
        ToolchainError: if the id is ModelScope's, and its client is not installed.
        NotAModelError: if the folder holds neither an adapter nor a model.
        UnsupportedError: if its weights are a parallel run's shards.
        CorruptFileError: if a file cannot be read, or links out of the folder.
    """
    located = _locate(given, checkpoint, revision, progress)
    choice = _choose(located.folder, checkpoint)
    folder = require_inside(choice.folder, located.folder)
    refuse_shards(folder)
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    try:
        adapter = open_adapter(folder) if is_adapter else None
        model = None if is_adapter else open_model(config_file(folder))
    except MissingWeightsError as error:
        raise _with_checkpoints(error, located.folder, folder) from error
    files = find_describing_files(run_folders(folder, located.folder))
    what = f"{adapter.config.method} adapter" if adapter is not None else "full model"
    reason = f"{what} in {folder}{choice.note}{_note_above(folder, files)}"
    return Source(given, folder, adapter, model, located.model_id, located.revision, reason, files)


def _with_checkpoints(error: MissingWeightsError, run: Path, folder: Path) -> MissingWeightsError:
    """The error with the existing training checkpoints of the run, which was interrupted."""
    others = [
        item for item in list_checkpoints(run) if item.folder not in (folder, *folder.parents)
    ]
    if not others:
        return error
    names = ", ".join(item.folder.name for item in others)
    choice = "last" if folder == run else str(others[-1].step)
    best = ", or the best with --checkpoint best" if any(item.is_best for item in others) else ""
    return MissingWeightsError(
        f"{error.message} The run left training checkpoints: {names}.",
        next_step=f"Package the last of them with --checkpoint {choice}{best}. "
        "Or finish the training.",
    )


def _note_above(folder: Path, files: Mapping[str, ModelFile]) -> str:
    """A note on files that lie above the folder with the weights."""
    paths = [file.path for file in files.values()]
    names = sorted(path.name for path in paths if not path.is_relative_to(folder))
    return f"; from the run's folder above it: {', '.join(names)}" if names else ""


def _locate(
    given: str, checkpoint: str | None, revision: str | None, progress: Progress
) -> _Located:
    if given.startswith(SCHEME):
        folder = download_from_modelscope(given, revision, progress, checkpoint)
        return _Located(folder, given, revision)
    if (local := existing_folder(given)) is not None:
        return _Located(local)
    path = Path(given)
    if path.exists():
        raise NotAModelError(
            f"{path} is a file, not a folder.",
            next_step=f"Name the folder that holds {ADAPTER_CONFIG_NAME} or {CONFIG_NAME}.",
        )
    if not is_hub_id(given) or given.startswith((".", "/", "~")):
        raise SourceNotFoundError(
            f"There is no folder {path}.",
            next_step="Name the folder that the training run wrote, a Hub id, or "
            f"{SCHEME}ORG/NAME.",
        )
    try:
        if checkpoint is not None:
            snapshot = obtain_checkpoint(given, revision, checkpoint, progress)
        else:
            snapshot = obtain(given, revision, is_complete_source, progress)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(
            f"There is no folder {path}, and {error.message}", next_step=error.next_step
        ) from error
    return _Located(snapshot.folder, snapshot.model_id, snapshot.revision)


def _is_packageable(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER_CONFIG_NAME, CONFIG_NAME))


def list_adapters(folder: Path) -> list[str]:
    """The names of the subfolders with an adapter: PEFT saves every adapter but `default` so."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path / ADAPTER_CONFIG_NAME).is_file() and not path.name.startswith("checkpoint-")
    )


def _only_named(folder: Path) -> Path | None:
    """The folder of the only named adapter in a folder; None if there is none.

    Raises:
        NotAModelError: with their names if there are several.
    """
    names = list_adapters(folder)
    if len(names) > 1:
        raise NotAModelError(
            f"{folder} holds {len(names)} adapters: {', '.join(names)}.",
            next_step=f"Name one of them, such as {folder / names[0]}; --adapter PATH adds more.",
        )
    return folder / names[0] if names else None


def _choose(folder: Path, wanted: str | None) -> _Choice:
    """The folder itself, or a training checkpoint or named adapter in it."""
    if wanted is None and _is_packageable(folder):
        note = _note_on_final_save(folder)
        if names := list_adapters(folder):
            note += f" (more adapters in its folders {', '.join(names)}: see --adapter)"
        return _Choice(folder, note)
    if wanted is None and not list_checkpoints(folder):
        if (named := _only_named(folder)) is not None:
            return _Choice(named, " (the only adapter in the folder)")
        refuse_shards(folder)
        raise _not_a_model(folder)
    chosen = choose_checkpoint(folder, wanted or "last")
    inside = chosen.checkpoint.folder
    if not _is_packageable(inside):
        if (named := _only_named(inside)) is not None:
            return _Choice(named, f" ({chosen.reason}; the only adapter in it)")
        refuse_shards(inside)
        raise NotAModelError(
            f"{inside} holds neither {ADAPTER_CONFIG_NAME} nor {CONFIG_NAME}.",
            next_step="Choose another one with --checkpoint N.",
        )
    return _Choice(inside, f" ({chosen.reason})")


def _not_a_model(folder: Path) -> NotAModelError:
    inside = [path for path in folder.iterdir() if path.is_dir() and _is_packageable(path)]
    hint = f" {inside[0]} looks like one." if inside else ""
    return NotAModelError(
        f"{folder} holds neither an adapter ({ADAPTER_CONFIG_NAME}), nor a model ({CONFIG_NAME}), "
        f"nor training checkpoints (checkpoint-N).",
        next_step=f"Name the folder that the training run wrote.{hint}",
    )


def _note_on_final_save(folder: Path) -> str:
    """A note on the final save of a run, above all on whether it is the best one."""
    run = read_run(folder)
    merged = folder / "merged"
    # axolotl's own merge; ftpack merges the adapter itself.
    has_merged = (folder / ADAPTER_CONFIG_NAME).is_file() and (merged / CONFIG_NAME).is_file()
    notes = [f"a merged model is in {merged}"] if has_merged else []
    if run.checkpoints:
        notes[:0] = ["its final save", f"{len(run.checkpoints)} training checkpoints beside it"]
        best = next((item for item in run.checkpoints if item.is_best), None)
        if best is not None and _has_weights_of(folder, best.folder):
            notes.insert(1, f"the weights of {best.folder.name}, the best")
        elif best is not None:
            notes.append(f"{best.folder.name} is the best by trainer_state.json: --checkpoint best")
        elif run.best is not None:
            notes.append(f"{run.best}, the best by trainer_state.json, does not exist")
        elif run.unreadable is not None:
            notes.append(f"the best one is unknown: {run.unreadable.message.rstrip('.')}")
    return f" ({'; '.join(notes)})" if notes else ""


def _has_weights_of(folder: Path, other: Path) -> bool:
    """Whether two folders have the same weights (`load_best_model_at_end`), by samples of bytes.

    A few training steps change every matrix; reading all of a large file would take seconds.
    """
    for name in ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"):
        ours, theirs = folder / name, other / name
        if ours.is_file() and theirs.is_file():
            size = ours.stat().st_size
            if size != theirs.stat().st_size or name.endswith(".json"):
                return False
            with ours.open("rb") as left, theirs.open("rb") as right:
                for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                    left.seek(start)
                    right.seek(start)
                    if left.read(_SAMPLE_BYTES) != right.read(_SAMPLE_BYTES):
                        return False
            return True
    return False
