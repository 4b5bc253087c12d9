"""Whether a folder has all the files of a model or an adapter: of a download, it may be a part."""

from __future__ import annotations

from pathlib import Path

from packager.errors import MissingWeightsError
from packager.model.adapter import ADAPTER_CONFIG_NAME, WEIGHT_NAMES
from packager.model.checkpoint import find_weight_files


def is_whole_model(folder: Path) -> bool:
    """Whether a folder has a model's configuration, and every weight file that belongs to it."""
    if not (folder / "config.json").is_file():
        return False
    try:
        find_weight_files(folder)
    except MissingWeightsError:
        return False
    return True


def is_whole_source(folder: Path) -> bool:
    """Whether a folder has an adapter, or several in folders of their own, or a model."""
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return _has_weights(folder)
    if (folder / "config.json").is_file():
        return is_whole_model(folder)
    # A checkpoint alone may have been asked for before: what is above it is still to come.
    named = [
        path.parent
        for path in folder.glob(f"*/{ADAPTER_CONFIG_NAME}")
        if not path.parent.name.startswith("checkpoint-")
    ]
    return bool(named) and all(map(_has_weights, named))


def _has_weights(adapter: Path) -> bool:
    return any((adapter / name).is_file() for name in WEIGHT_NAMES)
