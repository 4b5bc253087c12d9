"""A model's name where the user gives none, and the names of its files."""

from __future__ import annotations

import re

from packager.source.open import Source
from packager.source.run.checkpoints import CHECKPOINT_PREFIXES


def model_name(source: Source) -> str:
    """The name of a model that was given none: its folder's, in the characters that Ollama takes.

    A training checkpoint is named for the run that it belongs to.
    """
    folder = source.folder.absolute()
    stem = folder.parent.name if folder.name.startswith(CHECKPOINT_PREFIXES) else folder.name
    if source.model_id:
        stem = source.model_id.rpartition("/")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"


def file_stem(name: str) -> str:
    """The part of a model's name that its files begin with (`user/model:tag` gives `model`)."""
    return name.rpartition("/")[2].partition(":")[0]
