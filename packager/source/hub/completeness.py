"""Whether a folder has all the files of a model or an adapter; a download may be partial."""

from __future__ import annotations

from pathlib import Path

from packager.errors import MissingWeightsError
from packager.model.adapter import ADAPTER_CONFIG_NAME, WEIGHT_NAMES
from packager.model.checkpoint import find_weight_files
from packager.model.config import CONFIG_NAME


def is_complete_model(folder: Path) -> bool:
    """Whether a folder has a model's configuration and all of its weight files."""
    if not (folder / CONFIG_NAME).is_file():
        return False
    try:
        find_weight_files(folder)
    except MissingWeightsError:
        return False
    return True


def is_complete_source(folder: Path) -> bool:
    """Whether a folder has a complete adapter, several in folders of their own, or a model."""
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return _has_weights(folder)
    if (folder / CONFIG_NAME).is_file():
        return is_complete_model(folder)
    # An earlier run may have downloaded a training checkpoint alone, and nothing above it.
    adapters = [
        path.parent
        for path in folder.glob(f"*/{ADAPTER_CONFIG_NAME}")
        if not path.parent.name.startswith("checkpoint-")
    ]
    return bool(adapters) and all(map(_has_weights, adapters))


def _has_weights(adapter: Path) -> bool:
    return any((adapter / name).is_file() for name in WEIGHT_NAMES)
