"""What the user gave, opened: an adapter or a full model, from a folder, the Hub, ModelScope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import MissingWeightsError, NotAModelError, SourceNotFoundError
from packager.files import existing_folder, require_inside
from packager.model.adapter import ADAPTER_CONFIG_NAME, Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.model_file import ModelFile
from packager.progress import Progress
from packager.source.adapter_folder import open_adapter
from packager.source.base.find import open_model
from packager.source.hub.completeness import is_whole_source
from packager.source.hub.hub import is_hub_id, obtain
from packager.source.hub.hub_checkpoint import obtain_checkpoint
from packager.source.hub.modelscope import SCHEME, download_from_modelscope
from packager.source.run.checkpoints import choose_checkpoint, list_checkpoints, read_run
from packager.source.run.folders import find_describing_files, run_folders
from packager.source.run.shards import refuse_shards

_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Source:
    """A fine-tune.

    Attributes:
        given: what the user typed.
        folder: where the adapter or model is.
        adapter: the adapter, or None for a full model.
        model: the full model, or None for an adapter.
        model_id: the Hub id, or ModelScope's with its scheme, if it came from there.
        revision: the commit of the snapshot, if it came from the Hub; of ModelScope as asked for.
        reason: what was chosen and why, in words.
        files: the files beside the weights, by name; the run's tokenizer, where it is above them.
    """

    given: str
    folder: Path
    adapter: Adapter | None
    model: FolderCheckpoint | None
    model_id: str | None
    revision: str | None
    reason: str
    files: Mapping[str, ModelFile]


def open_source(
    given: str, checkpoint: str | None, revision: str | None, progress: Progress
) -> Source:
    """Open a folder, a Trainer's output, a Hub id, or an id of ModelScope.

    Raises:
        SourceNotFoundError: if there is no such folder, checkpoint or id.
        ToolchainError: if an id is of ModelScope, and its client is not installed.
        NotAModelError: if the folder holds neither an adapter nor a model.
        UnsupportedError: if its weights are a parallel run's shards.
        CorruptFileError: if a file cannot be read, or leads out of what was given.
    """
    located, model_id, commit = _locate(given, checkpoint, revision, progress)
    folder, reason = _choose(located, checkpoint)
    require_inside(folder, located)
    refuse_shards(folder)
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    try:
        adapter = open_adapter(folder) if is_adapter else None
        model = None if is_adapter else open_model(folder)
    except MissingWeightsError as error:
        raise _with_checkpoints(error, located, folder) from error
    files = find_describing_files(run_folders(folder, located))
    what = f"{adapter.config.method} adapter" if adapter is not None else "full model"
    reason = f"{what} in {folder}{reason}{_from_above(folder, files)}"
    return Source(given, folder, adapter, model, model_id, commit, reason, files)


def _with_checkpoints(error: MissingWeightsError, run: Path, folder: Path) -> MissingWeightsError:
    """The error, with the run's checkpoints that are there: its last save was never written."""
    others = [
        item for item in list_checkpoints(run) if item.folder not in (folder, *folder.parents)
    ]
    if not others:
        return error
    names = ", ".join(item.folder.name for item in others)
    choice = "last" if folder == run else str(others[-1].step)
    best = ", or the best with --checkpoint best" if any(item.is_best for item in others) else ""
    return MissingWeightsError(
        f"{error.message} The run has left checkpoints: {names}.",
        next_step=f"Package the last one of them with --checkpoint {choice}{best}. "
        "Or finish the training.",
    )


def _from_above(folder: Path, files: Mapping[str, ModelFile]) -> str:
    """What is to be said of files that lie above the folder that has the weights."""
    paths = [file.path for file in files.values()]
    names = sorted(path.name for path in paths if not path.is_relative_to(folder))
    return f"; from the run's folder above it: {', '.join(names)}" if names else ""


def _locate(
    given: str, checkpoint: str | None, revision: str | None, progress: Progress
) -> tuple[Path, str | None, str | None]:
    if given.startswith(SCHEME):
        return download_from_modelscope(given, revision, progress, checkpoint), given, revision
    if (folder := existing_folder(given)) is not None:
        return folder, None, None
    path = Path(given)
    if path.exists():
        raise NotAModelError(
            f"{path} is a file, not a folder.",
            next_step="Name the folder that holds adapter_config.json or config.json.",
        )
    if not is_hub_id(given) or given.startswith((".", "/", "~")):
        raise SourceNotFoundError(
            f"There is no folder {path}.",
            next_step="Name the folder that the training run has written, a Hub id, or "
            f"{SCHEME}ORG/NAME.",
        )
    try:
        if checkpoint is not None:
            found = obtain_checkpoint(given, revision, checkpoint, progress)
        else:
            found = obtain(given, revision, is_whole_source, progress)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(
            f"There is no folder {path}, and {error.message}", next_step=error.next_step
        ) from error
    return found.folder, found.model_id, found.revision


def _is_packageable(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER_CONFIG_NAME, "config.json"))


def list_adapters(folder: Path) -> list[str]:
    """The folders inside that hold an adapter, by name: PEFT saves all but `default` there."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path / ADAPTER_CONFIG_NAME).is_file() and not path.name.startswith("checkpoint-")
    )


def _only_named(folder: Path) -> Path | None:
    """The one adapter in a folder of named ones; None where there is none.

    Raises:
        NotAModelError: naming them where there are several.
    """
    names = list_adapters(folder)
    if len(names) > 1:
        raise NotAModelError(
            f"{folder} holds {len(names)} adapters: {', '.join(names)}.",
            next_step=f"Name one of them, such as {folder / names[0]}; --adapter PATH adds more.",
        )
    return folder / names[0] if names else None


def _choose(folder: Path, wanted: str | None) -> tuple[Path, str]:
    """The folder itself, or one of a Trainer's checkpoints in it; and the reason, if any."""
    if wanted is None and _is_packageable(folder):
        reason = _final_save(folder)
        if names := list_adapters(folder):
            reason += f" (more adapters in its folders {', '.join(names)}: see --adapter)"
        return folder, reason
    if wanted is None and not list_checkpoints(folder):
        if (named := _only_named(folder)) is not None:
            return named, " (the only adapter in the folder)"
        refuse_shards(folder)
        inside = [path for path in folder.iterdir() if path.is_dir() and _is_packageable(path)]
        hint = f" {inside[0]} looks like one." if inside else ""
        raise NotAModelError(
            f"{folder} holds neither an adapter (adapter_config.json), nor a model (config.json), "
            f"nor a Trainer's checkpoints (checkpoint-N).",
            next_step=f"Name the folder that the training run has written.{hint}",
        )
    chosen, reason = choose_checkpoint(folder, wanted or "last")
    if not _is_packageable(chosen.folder):
        if (named := _only_named(chosen.folder)) is not None:
            return named, f" ({reason}; the only adapter in it)"
        refuse_shards(chosen.folder)
        raise NotAModelError(
            f"{chosen.folder} holds neither adapter_config.json nor config.json.",
            next_step="Choose another one with --checkpoint N.",
        )
    return chosen.folder, f" ({reason})"


def _final_save(folder: Path) -> str:
    """What is to be said of a Trainer's last save: whether it is the best one, above all."""
    run = read_run(folder)
    merged = folder / "merged"
    # axolotl's merge writes there; the adapter is what ftpack merges itself.
    has_merged = (folder / ADAPTER_CONFIG_NAME).is_file() and (merged / "config.json").is_file()
    notes = [f"a merged model is in {merged}"] if has_merged else []
    if run.checkpoints:
        notes[:0] = ["its final save", f"{len(run.checkpoints)} checkpoints beside it"]
        best = next((item for item in run.checkpoints if item.is_best), None)
        if best is not None and _has_weights_of(folder, best.folder):
            notes.insert(1, f"the weights of {best.folder.name}, the best")
        elif best is not None:
            notes.append(f"{best.folder.name} is the best by trainer_state.json: --checkpoint best")
        elif run.best is not None:
            notes.append(f"{run.best}, the best by trainer_state.json, is not there")
        elif run.unreadable is not None:
            notes.append(f"which is the best is not known: {run.unreadable.message.rstrip('.')}")
    return f" ({'; '.join(notes)})" if notes else ""


def _has_weights_of(folder: Path, other: Path) -> bool:
    """Whether the last save is that checkpoint (`load_best_model_at_end`), by samples of bytes.

    A few steps of training change every matrix; reading all of a large file would take seconds.
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
