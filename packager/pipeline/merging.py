"""`ftpack merge`: the merged 16-bit checkpoint as a folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from packager.errors import OutputExistsError
from packager.files import require_disk, whole_file
from packager.merge.lora import Merged
from packager.merge.save import save_safetensors
from packager.pipeline.prepare import choose_device, find_inputs, open_checkpoint
from packager.plan import Request
from packager.progress import Progress

_NOT_TO_COPY = ("README.md", "trainer_state.json")


@dataclass(frozen=True)
class MergedFolder:
    """A merged checkpoint.

    Attributes:
        folder: where it is.
        files: everything that was written, by path.
        size_bytes: of all of it.
    """

    folder: Path
    files: tuple[Path, ...]
    size_bytes: int


def merge(request: Request, folder: Path, progress: Progress) -> MergedFolder:
    """Write source and base as one checkpoint that transformers loads.

    Raises:
        OutputExistsError: if the folder holds a model already, and `request.force` is not set.
    """
    existing = folder / "config.json"
    if existing.exists() and not request.force:
        raise OutputExistsError(
            f"{folder} holds a model already ({existing.name}).",
            next_step="Choose another folder with --out, or overwrite it with --force.",
        )
    inputs = find_inputs(request, progress)
    checkpoint = open_checkpoint(inputs, choose_device(request.device))
    weights = sum(info.size_bytes for info in checkpoint.tensors.values())
    require_disk(folder, weights, "The merged model")
    folder.mkdir(parents=True, exist_ok=True)
    files = save_safetensors(checkpoint, folder, progress)
    if isinstance(checkpoint, Merged):
        checkpoint.require_all_used()
    # config.json comes last: a folder without it is no model, so that an interrupted run shows.
    names = sorted(inputs.files, key=lambda name: (name == "config.json", name))
    for name in names:
        if name not in _NOT_TO_COPY:
            with inputs.files[name].open("rb") as source, whole_file(folder / name) as target:
                shutil.copyfileobj(source, target)
            files.append(folder / name)
    return MergedFolder(folder, tuple(files), sum(path.stat().st_size for path in files))
