"""What a training run tells about itself in the files beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packager.files import read_json

_TOKENIZER_CONFIG = "tokenizer_config.json"


def training_length(own_files: Mapping[str, Path], base_files: Mapping[str, Path]) -> int | None:
    """The sequence length of training in tokens, where it is known.

    Trainers that set one write it as the tokenizer's `model_max_length`; where that is the base's,
    or the "no limit" that transformers writes, it says nothing of the training.
    """
    own, base = _max_length(own_files), _max_length(base_files)
    return own if own is not None and own != base else None


def _max_length(files: Mapping[str, Path]) -> int | None:
    if _TOKENIZER_CONFIG not in files:
        return None
    value = read_json(files[_TOKENIZER_CONFIG]).get("model_max_length")
    return value if isinstance(value, int) and 0 < value < 10_000_000 else None
