"""The context length: YaRN beyond the trained one (arXiv 2309.00071), and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import UnsupportedError
from packager.files import format_bytes
from packager.gguf.run_memory import estimate_run_memory
from packager.model.config import ModelConfig
from packager.progress import Progress

if TYPE_CHECKING:
    from packager.gguf.convert import Conversion

_LENGTH = "max_position_embeddings"


def stretched_config(config: ModelConfig, context_length: int) -> ModelConfig:
    """The configuration with YaRN up to a context, or `config` if the model was trained so far.

    llama.cpp's converter writes YaRN's settings into the GGUF. Runtimes then stretch the positions
    of every text by the same factor, also those of short texts.

    Args:
        config: the model's configuration.
        context_length: in tokens.

    Raises:
        UnsupportedError: if the model already scales its positions, or does not give their number.
    """
    trained = config.values.get(_LENGTH)
    if not isinstance(trained, int):
        raise _unsupported(config.path, f"it has no {_LENGTH}")
    if context_length <= trained:
        return config
    has_parameters = isinstance(config.values.get("rope_parameters"), dict)
    key = "rope_parameters" if has_parameters else "rope_scaling"
    rope = config.values.get(key) or {}
    rope_type = _rope_type(rope)
    if rope_type != "default":
        raise _unsupported(config.path, f"its {key} already has the type {rope_type!r}")
    scaled = {
        **(rope if isinstance(rope, dict) else {}),
        "rope_type": "yarn",
        "factor": context_length / trained,
        "original_max_position_embeddings": trained,
    }
    return config.replaced({**config.values, key: scaled, _LENGTH: context_length})


def _rope_type(rope: object) -> str:
    if not isinstance(rope, Mapping):
        return "unknown"
    if any(isinstance(value, Mapping) for value in rope.values()):
        return "one for each kind of layer"
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _unsupported(path: Path, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"The context of {path} cannot be stretched: {why}.",
        next_step="Omit --context, or choose a length within the model's own context.",
    )


def warn_of_context(context_length: int | None, conversion: Conversion, progress: Progress) -> None:
    """Report what the requested context costs: memory, and with YaRN possibly quality.

    Args:
        context_length: in tokens; None, for the model's own, reports nothing.
        conversion: the text model with that context.
        progress: gets the note, and the warning about YaRN.
    """
    if not context_length:
        return
    cache = format_bytes(estimate_run_memory(0, conversion.metadata, context_length))
    progress.note(f"Context: {context_length} tokens, whose keys and values take {cache}")
    if conversion.value("rope.scaling.type") == "yarn":
        factor = conversion.value("rope.scaling.factor")
        progress.warn(
            f"YaRN stretches every position by {factor:.3g}, also in short texts. The model was "
            "not trained for that, and its answers may be worse at any length. Choose the shortest "
            "context that you need"
        )
