"""The 16-bit original of a base that bitsandbytes quantized, recognised by its name and shape.

Training on a 4-bit base reads its weights rounded. The adapter fits the 16-bit original as well,
which has everything that the rounding lost. Merged into the rounded weights, the result is the
model of the training, which most quants then round a second time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from packager.errors import CorruptFileError, SourceNotFoundError
from packager.model.config import CONFIG_NAME, parse_config
from packager.model.model_file import ModelFile
from packager.progress import Progress
from packager.source.hub.completeness import is_complete_model
from packager.source.hub.hub import find_cached, find_file, obtain
from packager.source.model_folder import config_file

_BNB_NAME = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
# An adapter of one model fits another if these values are equal.
_SHAPE_KEYS = (
    "architectures", "head_dim", "hidden_size", "intermediate_size", "model_type",
    "moe_intermediate_size", "num_attention_heads", "num_experts", "num_hidden_layers",
    "num_key_value_heads", "num_local_experts", "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def full_precision_name(name: str) -> str | None:
    """The name of the 16-bit original; None if `name` is not that of a bitsandbytes base."""
    original = _BNB_NAME.sub("", name)
    return original if original and original != name else None


def full_precision_beside(quantized: ModelFile, progress: Progress) -> ModelFile | None:
    """The `config.json` of the 16-bit original in the folder beside a quantized base, if it fits.

    Args:
        quantized: the quantized base's `config.json`.
        progress: receives the reason if the original does not fit.
    """
    folder = quantized.path.parent.absolute()
    name = full_precision_name(folder.name)
    if name is None or not (folder.parent / name / CONFIG_NAME).is_file():
        return None
    original = config_file(folder.parent / name)
    return original if _require_fit(original, quantized, folder.name, progress) else None


def full_precision_on_hub(
    model_id: str, quantized: ModelFile | None, progress: Progress
) -> ModelFile | None:
    """The `config.json` of the 16-bit original's snapshot, from the local cache or the Hub.

    Gives None if it is not available or does not fit.

    Args:
        model_id: the quantized base's id.
        quantized: the quantized base's `config.json`; None if it is not available.
        progress: receives the reason if the original is not used.
    """
    name = full_precision_name(model_id)
    if name is None:
        return None
    if quantized is None:
        progress.note(
            f"{model_id} cannot be compared with {name}: its {CONFIG_NAME} is not available"
        )
        return None
    cached = find_cached(name, None)
    path = cached.folder / CONFIG_NAME if cached else None
    if path is None or not path.is_file():
        # The configuration alone shows whether the download is worthwhile.
        path = find_file(name, CONFIG_NAME, None)
    if path is None:
        progress.note(
            f"The 16-bit original {name} is not in the cache, and cannot be downloaded from the Hub"
        )
        return None
    original = ModelFile(path)
    if not _require_fit(original, quantized, model_id, progress):
        return None
    try:
        folder = obtain(name, None, is_complete_model, progress).folder
    except SourceNotFoundError as error:
        progress.note(f"The 16-bit original is not used: {error.message}")
        return None
    return original if folder == path.parent else config_file(folder)


def is_full_precision_of(original: ModelFile, quantized: ModelFile) -> bool:
    """Whether two `config.json` describe models of the same shape."""
    return not _differences(original, quantized)


def _require_fit(
    original: ModelFile, quantized: ModelFile, quantized_name: str, progress: Progress
) -> bool:
    """Whether both have the same shape; warns with the differences if they do not."""
    differences = _differences(original, quantized)
    if differences:
        progress.warn(
            f"{original.path.parent} is not the 16-bit original of {quantized_name}: it differs in "
            f"{', '.join(differences)}"
        )
    return not differences


def _differences(original: ModelFile, quantized: ModelFile) -> list[str]:
    """The shape keys in which two `config.json` differ, with both values."""
    try:
        ours, theirs = _flat(original), _flat(quantized)
    except CorruptFileError:
        return [f"{CONFIG_NAME}, which cannot be read"]
    return [
        f"{key} ({ours[key]!r}, not {theirs[key]!r})"
        for key in _SHAPE_KEYS
        if key in ours and key in theirs and ours[key] != theirs[key]
    ]


def _flat(file: ModelFile) -> Mapping[str, object]:
    """The values of a configuration; those of its text part replace its own."""
    config = parse_config(file)
    return {**config.values, **config.text}
