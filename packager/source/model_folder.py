"""Opening a full model's folder: its configuration, checked, and its weight files."""

from __future__ import annotations

from pathlib import Path

from packager.errors import NotAModelError
from packager.files import require_inside
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import CONFIG_NAME, parse_config
from packager.model.dequantize.formats import require_known
from packager.model.model_file import ModelFile


def config_file(folder: Path) -> ModelFile:
    """A model folder's `config.json`, which is not read yet and may not exist."""
    return ModelFile(folder / CONFIG_NAME)


def open_model(file: ModelFile) -> FolderCheckpoint:
    """The checkpoint of a full model, whose `config.json` is not read again if it was read already.

    Args:
        file: the model's `config.json` (see `config_file`).

    Raises:
        NotAModelError: if there is no `config.json`.
        UnsupportedError: if the weights have a quantization that ftpack does not dequantize.
        MissingWeightsError: if weights are missing.
        CorruptFileError: if a file cannot be read.
    """
    folder = file.path.parent
    if not file.path.is_file():
        raise NotAModelError(
            f"{folder} has no {CONFIG_NAME}.",
            next_step="Name a folder that save_pretrained wrote.",
        )
    require_inside(file.path, folder)
    config = parse_config(file)
    require_known(config)
    return FolderCheckpoint(folder, config)
