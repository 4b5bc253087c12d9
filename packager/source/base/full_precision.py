"""The 16-bit twin of a base that bitsandbytes has quantized: found by its name, held to its shape.

Training on a 4-bit base reads its weights as rounded ones. An adapter of it fits the twin just as
well, and the twin has all that the rounding lost; merged into the rounded weights it is what was
seen in training, which is rounded a second time for most quants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from packager.errors import CorruptFileError, SourceNotFoundError
from packager.files import read_json
from packager.progress import Progress
from packager.source.hub.completeness import is_whole_model
from packager.source.hub.hub import find_cached, find_file, obtain

_BNB_NAME = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
# What two models must have in common for one's adapter to be the other's.
_SHAPE_KEYS = (
    "architectures", "head_dim", "hidden_size", "intermediate_size", "model_type",
    "moe_intermediate_size", "num_attention_heads", "num_experts", "num_hidden_layers",
    "num_key_value_heads", "num_local_experts", "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def twin_name(name: str) -> str | None:
    """The name of the 16-bit twin, or None where a name is not of a bitsandbytes base."""
    twin = _BNB_NAME.sub("", name)
    return twin if twin and twin != name else None


def twin_beside(folder: Path, progress: Progress) -> Path | None:
    """The twin's folder beside a quantized base's, if it is there and fits."""
    twin = twin_name(folder.name)
    if twin is None or not (folder.parent / twin / "config.json").is_file():
        return None
    return _fitting(folder.parent / twin, folder / "config.json", folder.name, progress)


def twin_on_hub(model_id: str, revision: str | None, progress: Progress) -> Path | None:
    """The twin's snapshot from the local cache or the Hub, if it can be had and fits.

    Args:
        model_id: the quantized base's.
        revision: of the quantized base; the twin has its own.
        progress: where it is told why the twin is not used.
    """
    twin = twin_name(model_id)
    if twin is None:
        return None
    quantized = find_file(model_id, "config.json", revision)
    if quantized is None:
        progress.note(f"{model_id} cannot be compared with {twin}: its config.json is not at hand")
        return None
    cached = find_cached(twin, None)
    config = cached.folder / "config.json" if cached else None
    if config is None or not config.is_file():
        # Its configuration alone tells whether the download is worth it.
        config = find_file(twin, "config.json", None)
    if config is None:
        progress.note(f"The 16-bit twin {twin} is not in the cache, and not to be had from the Hub")
        return None
    if _fitting(config.parent, quantized, model_id, progress) is None:
        return None
    try:
        return obtain(twin, None, is_whole_model, progress).folder
    except SourceNotFoundError as error:
        progress.note(f"The 16-bit twin is not used: {error.message}")
        return None


def is_twin(twin: Path, quantized: Path) -> bool:
    """Whether two folders' configurations describe models of one shape."""
    return not _differences(twin / "config.json", quantized / "config.json")


def _fitting(twin: Path, quantized: Path, name: str, progress: Progress) -> Path | None:
    different = _differences(twin / "config.json", quantized)
    if not different:
        return twin
    progress.warn(f"{twin} is no 16-bit twin of {name}: it differs in {', '.join(different)}")
    return None


def _differences(twin: Path, quantized: Path) -> list[str]:
    """The keys in which two `config.json` describe models of other shapes."""
    try:
        ours, theirs = _text_part(read_json(twin)), _text_part(read_json(quantized))
    except CorruptFileError:
        return ["config.json, which cannot be read"]
    return [
        f"{key} ({ours[key]!r}, not {theirs[key]!r})"
        for key in _SHAPE_KEYS
        if key in ours and key in theirs and ours[key] != theirs[key]
    ]


def _text_part(config: Mapping[str, object]) -> dict[str, object]:
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else dict(config)
