"""A model folder that is written as a whole: its files move into place when all are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.files import made_folder, sync_folder
from packager.model.config import CONFIG_NAME

_STAGING = ".ftpack-merge.partial"


@dataclass(frozen=True)
class SavedFolder:
    """A folder that was written.

    Attributes:
        folder: its path.
        files: the paths of all files that were written.
    """

    folder: Path
    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(path.stat().st_size for path in self.files)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write to, whose files move to `folder` when the block ends without an error.

    Until then, and after an error, a model that is already in `folder` stays as it is.
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
    # config.json is removed first and written last: a folder without it is not a model, so an
    # interrupted run cannot be mistaken for a finished one.
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    for pattern in ("model*.safetensors", "model.safetensors.index.json"):
        for stale in folder.glob(pattern):  # loaders would prefer them to the new files
            stale.unlink()
    paths = [path for path in staging.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.name == CONFIG_NAME, path)):
        place = folder / path.relative_to(staging)
        place.parent.mkdir(exist_ok=True)
        os.replace(path, place)
    sync_folder(folder)
