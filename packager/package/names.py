"""Names: a model's, if the user gives none, and those of its files."""

from __future__ import annotations

import re

from packager.gguf.quants import Quant
from packager.source.open import Source
from packager.source.run.checkpoints import CHECKPOINT_PREFIXES


def model_name(source: Source) -> str:
    """The name of a model to which the user gave none, in the characters that Ollama accepts.

    It is the last part of the Hub id, or else the folder's name; a training checkpoint has the name
    of its run's folder.
    """
    folder = source.folder.absolute()
    stem = folder.parent.name if folder.name.startswith(CHECKPOINT_PREFIXES) else folder.name
    if source.model_id:
        stem = source.model_id.rpartition("/")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"


def file_stem(name: str) -> str:
    """The part of a model's name that its files begin with (`user/model:tag` gives `model`)."""
    return name.rpartition("/")[2].partition(":")[0]


def gguf_name(name: str, quant: Quant) -> str:
    """The file name of a model's GGUF."""
    return f"{file_stem(name)}-{quant.name}.gguf"


def projector_name(name: str, quant: Quant) -> str:
    """The file name of a multimodal model's `mmproj`."""
    return f"mmproj-{file_stem(name)}-{quant.name}.gguf"
