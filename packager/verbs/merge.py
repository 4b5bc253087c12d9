"""`ftpack merge`: the merged checkpoint as a folder, in 16 or in 4 bits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.errors import OutputExistsError
from packager.files import (
    made_folder,
    read_json,
    require_disk,
    sync_folder,
    whole_file,
    write_json,
)
from packager.model.checkpoint import Checkpoint
from packager.package.checks import require_merged, require_rows, require_whole
from packager.package.plan import Request
from packager.package.prepare import choose_device, described, open_checkpoint
from packager.progress import Progress
from packager.quality.base_choice import Nearness, measure_nearness
from packager.save.four_bit import (
    FourBitPlan,
    plan_four_bit,
    require_bitsandbytes,
    save_four_bit,
)
from packager.save.safetensors import save_safetensors
from packager.source.inputs import find_inputs

_CONFIG = "config.json"
_STAGING = ".ftpack-merge.partial"
_NOT_TO_COPY = ("README.md", "trainer_state.json")


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
        require_rows(inputs, describing["config.json"], checkpoint)
        require_whole(checkpoint, describing["config.json"], request, progress)
        plan = None
        if form == "merged_4bit":
            plan = plan_four_bit(checkpoint, describing["config.json"].parent)
        size_bytes = plan.size_bytes if plan else _size_bytes(checkpoint)
        require_disk(folder, size_bytes, "The merged model")
        with _staged(folder) as staging:
            if plan:
                names = _write_four_bit(checkpoint, plan, describing, staging, progress)
            else:
                names = _write(checkpoint, describing, staging, progress)
            require_merged(checkpoint, progress)
    files = [folder / name for name in names]
    size_bytes = sum(path.stat().st_size for path in files)
    return MergedFolder(folder, tuple(files), size_bytes, nearness)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder whose files get their places in `folder` when all of them are there, and are right.

    Until then, and after an error, a model that is being overwritten stays as it is.
    """
    staging = folder / _STAGING
    with made_folder(folder):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            _publish(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, folder: Path) -> None:
    # config.json goes first and comes last: a folder without it is no model, so that an
    # interrupted run shows.
    (folder / _CONFIG).unlink(missing_ok=True)
    for pattern in ("model*.safetensors", "model.safetensors.index.json"):
        for stale in folder.glob(pattern):  # loaders would prefer them
            stale.unlink()
    paths = [path for path in staging.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.name == _CONFIG, path)):
        place = folder / path.relative_to(staging)
        place.parent.mkdir(exist_ok=True)
        os.replace(path, place)
    sync_folder(folder)


def _write(
    checkpoint: Checkpoint, describing: Mapping[str, Path], folder: Path, progress: Progress
) -> list[str]:
    files = save_safetensors(checkpoint, folder, progress)
    return [path.name for path in files] + _copy(describing, folder)


def _write_four_bit(
    checkpoint: Checkpoint,
    plan: FourBitPlan,
    describing: Mapping[str, Path],
    folder: Path,
    progress: Progress,
) -> list[str]:
    files = save_four_bit(checkpoint, plan, folder, progress)
    others = {name: path for name, path in describing.items() if name != _CONFIG}
    config = read_json(describing[_CONFIG]) | {"quantization_config": plan.config}
    write_json(folder / _CONFIG, config)
    return [*(path.name for path in files), *_copy(others, folder), _CONFIG]


def _size_bytes(checkpoint: Checkpoint) -> int:
    return sum(info.size_bytes for info in checkpoint.tensors.values())


def _copy(describing: Mapping[str, Path], folder: Path) -> list[str]:
    """Copy the files that are no weights; gives their names, that of `config.json` last."""
    names = [name for name in describing if name not in _NOT_TO_COPY]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        with describing[name].open("rb") as source, whole_file(folder / name) as target:
            shutil.copyfileobj(source, target)
    return sorted(names, key=lambda name: (name == _CONFIG, name))
