"""A longer context than the model was trained with, by YaRN (arXiv 2309.00071)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packager.errors import UnsupportedError
from packager.files import read_json

_LENGTH = "max_position_embeddings"


def stretched_config(config_path: Path, context_length: int) -> dict[str, object] | None:
    """The configuration with YaRN up to a context; None where the model reaches that far anyway.

    llama.cpp's converter writes what it says of it into the GGUF. The positions of every text are
    stretched by the same factor then, those of short ones too.

    Args:
        config_path: the model's `config.json`.
        context_length: in tokens.

    Raises:
        UnsupportedError: if the model's positions are scaled already, or are not of this kind.
    """
    config = read_json(config_path)
    trained = config.get(_LENGTH)
    if not isinstance(trained, int):
        raise _unsupported(config_path, f"it has no {_LENGTH}")
    if context_length <= trained:
        return None
    key = "rope_parameters" if isinstance(config.get("rope_parameters"), dict) else "rope_scaling"
    rope = config.get(key) or {}
    kind = _kind(rope)
    if kind != "default":
        raise _unsupported(config_path, f"its {key} is of the kind {kind!r} already")
    scaled = {
        **(rope if isinstance(rope, dict) else {}),
        "rope_type": "yarn",
        "factor": context_length / trained,
        "original_max_position_embeddings": trained,
    }
    return {**config, key: scaled, _LENGTH: context_length}


def _kind(rope: object) -> str:
    if not isinstance(rope, Mapping):
        return "unknown"
    if any(isinstance(value, Mapping) for value in rope.values()):
        return "one for each kind of layer"
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _unsupported(path: Path, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"The context of {path} cannot be stretched: {why}.",
        next_step="Leave --context out, or choose one inside the model's own.",
    )
