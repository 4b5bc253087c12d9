"""`ftpack merge`: the merged checkpoint as a folder, in 16 or in 4 bits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.checkpoint import Checkpoint
from packager.errors import OutputExistsError
from packager.files import read_json, require_disk, whole_file, write_json
from packager.merge.four_bit import plan_four_bit, require_bitsandbytes, save_four_bit
from packager.merge.merged import MergedCheckpoint
from packager.merge.save import save_safetensors
from packager.pipeline.inputs import find_inputs
from packager.pipeline.nearness import Nearness, measure_nearness
from packager.pipeline.prepare import choose_device, described, open_checkpoint
from packager.plan import Request
from packager.progress import Progress

_NOT_TO_COPY = ("README.md", "trainer_state.json")


def _remove_stale_weights(folder: Path, written: list[Path]) -> None:
    """Remove shards and indexes of what is being overwritten: loaders would prefer them."""
    for pattern in ("model*.safetensors", "model.safetensors.index.json"):
        for path in folder.glob(pattern):
            if path not in written:
                path.unlink()


@dataclass(frozen=True)
class MergedFolder:
    """A merged checkpoint.

    Attributes:
        folder: where it is.
        files: everything that was written, by path.
        size_bytes: of all of it.
        nearness: of a base that bitsandbytes has quantized, or its twin, to what was trained.
    """

    folder: Path
    files: tuple[Path, ...]
    size_bytes: int
    nearness: Nearness | None = None


def merge(
    request: Request, folder: Path, progress: Progress, form: str = "merged_16bit"
) -> MergedFolder:
    """Write source and base as one checkpoint that transformers loads.

    Args:
        request: what to merge.
        folder: where to.
        progress: told what was found, and how far it is.
        form: `merged_16bit`, in the base's own element type, or `merged_4bit`, by bitsandbytes.

    Raises:
        ToolchainError: if `merged_4bit` is asked for and there is no bitsandbytes.
        OutputExistsError: if the folder holds a model already, and `request.force` is not set; or
            if it is the source's or the base's own.
    """
    existing = folder / "config.json"
    if existing.exists() and not request.force:
        raise OutputExistsError(
            f"{folder} holds a model already ({existing.name}).",
            next_step="Choose another folder with --out, or overwrite it with --force.",
        )
    if form == "merged_4bit":
        require_bitsandbytes()
    inputs = find_inputs(request, progress)
    read_from = [inputs.model.folder, *(source.folder for source in inputs.sources)]
    if folder.resolve() in [path.resolve() for path in read_from]:
        raise OutputExistsError(
            f"{folder} is where the model is read from.",
            next_step="Choose another folder with --out.",
        )
    device = choose_device(request.device)
    checkpoint = open_checkpoint(inputs, device, progress)
    anything: dict[str, dict[str, str]] = {name: {} for name in checkpoint.tensors}
    nearness = measure_nearness(inputs, checkpoint, anything, device, progress)
    with described(inputs, checkpoint) as describing:
        if form == "merged_4bit":
            files = _write_four_bit(checkpoint, describing, folder, progress)
        else:
            files = _write(checkpoint, describing, folder, progress)
    size_bytes = sum(path.stat().st_size for path in files)
    return MergedFolder(folder, tuple(files), size_bytes, nearness)


def _write(
    checkpoint: Checkpoint, describing: Mapping[str, Path], folder: Path, progress: Progress
) -> list[Path]:
    size_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    _make_room(folder, size_bytes)
    files = save_safetensors(checkpoint, folder, progress)
    _finish(checkpoint, folder, files)
    return files + _copy(describing, folder)


def _write_four_bit(
    checkpoint: Checkpoint, describing: Mapping[str, Path], folder: Path, progress: Progress
) -> list[Path]:
    plan = plan_four_bit(checkpoint, describing["config.json"].parent)
    _make_room(folder, plan.size_bytes)
    files = save_four_bit(checkpoint, plan, folder, progress)
    _finish(checkpoint, folder, files)
    others = {name: path for name, path in describing.items() if name != "config.json"}
    files += _copy(others, folder)
    config = read_json(describing["config.json"]) | {"quantization_config": plan.config}
    write_json(folder / "config.json", config)
    return [*files, folder / "config.json"]


def _make_room(folder: Path, size_bytes: int) -> None:
    require_disk(folder, size_bytes, "The merged model")
    folder.mkdir(parents=True, exist_ok=True)
    # With --force: a model without its config.json is none, until the new one is whole.
    (folder / "config.json").unlink(missing_ok=True)


def _finish(checkpoint: Checkpoint, folder: Path, written: list[Path]) -> None:
    _remove_stale_weights(folder, written)
    if isinstance(checkpoint, MergedCheckpoint):
        checkpoint.require_all_used()


def _copy(describing: Mapping[str, Path], folder: Path) -> list[Path]:
    """Copy the files that are no weights; gives where they are."""
    written = []
    # config.json comes last: a folder without it is no model, so that an interrupted run shows.
    for name in sorted(describing, key=lambda name: (name == "config.json", name)):
        if name not in _NOT_TO_COPY:
            (folder / name).parent.mkdir(exist_ok=True)
            with describing[name].open("rb") as source, whole_file(folder / name) as target:
                shutil.copyfileobj(source, target)
            written.append(folder / name)
    return written
