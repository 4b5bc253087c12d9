"""Models that see or hear: which GGUFs they become, and that nothing tuned is left out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import AdapterMismatchError, CorruptFileError, MissingWeightsError, listed
from packager.gguf.convert import Conversion, convert_projector, has_projector
from packager.gguf.quants import QUANTS
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import TypedQuant, type_floats
from packager.merge.merged import MergedCheckpoint
from packager.model.checkpoint import Checkpoint
from packager.progress import Progress

_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Nothing is lost without them: a head that is the embeddings' own, and buffers that a model
# computes by itself, as older versions of transformers saved them.
_COPIES = ("lm_head.weight", ".inv_freq", ".position_ids", ".masked_bias", ".attn.bias",
           ".attention.bias")  # fmt: skip


@dataclass(frozen=True)
class Projector:
    """The `mmproj` beside a text model: encoders of images or sounds, and their projection.

    Attributes:
        conversion: its tensors and metadata.
        typed: their types: F16, and F32 where the converter wants it.
    """

    conversion: Conversion
    typed: TypedQuant


def find_projector(
    toolchain: Toolchain,
    text: Conversion,
    files: Mapping[str, Path],
    name: str,
    progress: Progress,
    *,
    is_text_only: bool,
) -> Projector | None:
    """What is made beside the text model, if anything.

    Where there is more than text in the checkpoint, and nothing is made of it, that is said.

    Args:
        toolchain: where the converter is.
        text: the text model.
        files: config and preprocessor files, by name.
        name: `general.name`.
        progress: told what is left out.
        is_text_only: whether the user wants the text model alone.

    Raises:
        MissingWeightsError: if the files that say how images are prepared are not there.
        UnsupportedError: with the converter's reason, if it does not take the model.
    """
    unread = _unread(text)
    if not unread:
        return None
    if is_text_only:
        progress.warn(f"Text only, as asked for; left out are {_counted(unread)}")
        return None
    if not has_projector(toolchain, files["config.json"]):
        progress.warn(
            f"llama.cpp's converter (llama-cpp-python {toolchain.version}) makes the text model "
            f"alone of this architecture; left out are {_counted(unread)}"
        )
        return None
    _require_preprocessor(files)
    conversion = convert_projector(toolchain, text.checkpoint, files, name)
    _require_colours(conversion.key_values, files)
    if lost := [tensor for tensor in unread if tensor not in conversion.reads]:
        progress.warn(f"The converter has no place in either GGUF for {_counted(lost)}")
    return Projector(conversion, type_floats(conversion, QUANTS["F16"]))


def _unread(text: Conversion) -> list[str]:
    """The checkpoint's tensors that the text model does without."""
    return [
        name
        for name in text.checkpoint.tensors
        if name not in text.reads and not name.endswith(_COPIES)
    ]


def _counted(names: list[str]) -> str:
    return f"{len(names)} tensors: {listed(names)}"


def _require_preprocessor(files: Mapping[str, Path]) -> None:
    if any(name in files for name in _PREPROCESSORS):
        return
    raise MissingWeightsError(
        f"{files['config.json'].parent} has neither {' nor '.join(_PREPROCESSORS)}, which say how "
        "images are prepared for this model.",
        next_step="Copy them from the base model (`AutoProcessor.from_pretrained(BASE)"
        ".save_pretrained(FOLDER)`), or take the text model alone with --text-only.",
    )


def _require_colours(key_values: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Check what the converter copies as it is: how the three colours are normalized."""
    if "clip.has_vision_encoder" not in key_values:
        return
    for key in ("image_mean", "image_std"):
        item = key_values.get(f"clip.vision.{key}")
        value = [] if item is None else item.value  # an empty list is not even written
        is_list = isinstance(value, list) and len(value) == 3
        if is_list and all(isinstance(number, int | float) for number in value):
            continue
        path = next(files[name] for name in _PREPROCESSORS if name in files)
        raise CorruptFileError(
            f"{path}: `{key}` is {str(value)[:80]!r}, not three numbers.",
            next_step="Copy the file from the base model.",
        )


def require_targets_held(
    checkpoint: Checkpoint,
    text: Conversion,
    projector: Projector | None,
    progress: Progress,
    *,
    is_text_only: bool,
) -> None:
    """See that every tensor that an adapter changes is in a GGUF.

    Raises:
        AdapterMismatchError: listing those that are in none; or, with `is_text_only`, if nothing
            that is tuned belongs to the text model.
    """
    if not isinstance(checkpoint, MergedCheckpoint):
        return
    held = text.reads | (projector.conversion.reads if projector else frozenset())
    tuned = [name for name in checkpoint.tensors if checkpoint.is_merged(name)]
    left_out = [name for name in tuned if name not in held]
    if left_out and is_text_only and len(left_out) < len(tuned):
        progress.warn(f"--text-only leaves out {len(left_out)} tensors that the adapter has tuned: "
                      f"{listed(left_out)}")  # fmt: skip
    elif left_out:
        raise AdapterMismatchError(
            f"The adapter tunes {len(left_out)} tensors that would be in no GGUF of this model: "
            f"{listed(left_out)}.",
            next_step="Leave --text-only away."
            if is_text_only
            else "The converter has no place for them; merge them with `ftpack merge`, or take "
            "what is tuned of the text model alone with --text-only.",
        )
