"""Multimodal models: the `mmproj` beside the text model, and no tuned tensor left out of both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import AdapterMismatchError, CorruptFileError, MissingWeightsError, listed
from packager.gguf.convert import Conversion, ModelSource, convert_projector, has_projector
from packager.gguf.quants import QUANTS
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import TypedQuant, type_floats
from packager.model.model_file import ModelFile
from packager.progress import Progress

_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Tensors that a model does not need: a head that is a copy of the embeddings, and buffers that it
# computes itself, which older versions of transformers saved.
_COPIES = ("lm_head.weight", ".inv_freq", ".position_ids", ".masked_bias", ".attn.bias",
           ".attention.bias")  # fmt: skip


@dataclass(frozen=True)
class Projector:
    """The `mmproj` beside a text model: encoders of images or audio, and their projection.

    Attributes:
        conversion: its tensors and metadata.
        typed: the tensors' types: F16, and F32 where the converter requires it.
    """

    conversion: Conversion
    typed: TypedQuant


def find_projector(
    toolchain: Toolchain,
    text: Conversion,
    source: ModelSource,
    scratch: Path,
    progress: Progress,
    *,
    is_text_only: bool,
) -> Projector | None:
    """The `mmproj` beside the text model, or None. Tensors that no GGUF uses are reported.

    Args:
        toolchain: where the converter is.
        text: the text model.
        source: what the text model was converted from.
        scratch: a folder of the run.
        progress: gets a warning about what is left out.
        is_text_only: whether the user wants only the text model.

    Raises:
        MissingWeightsError: if no file says how images are prepared.
        CorruptFileError: if that file does not say how colours are normalized.
        UnsupportedError: with the converter's reason, if it refuses the model.
    """
    unread = _unread(text)
    if not unread:
        return None
    if is_text_only:
        progress.warn(f"Text only, as requested; left out are {_counted(unread)}")
        return None
    if not has_projector(toolchain, source.checkpoint.config):
        progress.warn(
            f"llama.cpp's converter (llama-cpp-python {toolchain.version}) makes only the text "
            f"model of this architecture; left out are {_counted(unread)}"
        )
        return None
    preprocessor = _preprocessor(source)
    conversion = convert_projector(toolchain, source, scratch)
    _require_colours(conversion.metadata, preprocessor.path)
    if unused := [tensor for tensor in unread if tensor not in conversion.reads]:
        progress.warn(f"The converter has no place in either GGUF for {_counted(unused)}")
    return Projector(conversion, type_floats(conversion, QUANTS["F16"]))


def _unread(text: Conversion) -> list[str]:
    """The checkpoint's tensors that the text model does not use."""
    return [
        name
        for name in text.checkpoint.tensors
        if name not in text.reads and not name.endswith(_COPIES)
    ]


def _counted(names: list[str]) -> str:
    return f"{len(names)} tensors: {listed(names)}"


def _preprocessor(source: ModelSource) -> ModelFile:
    """The file that says how images are prepared."""
    for name in _PREPROCESSORS:
        if name in source.files:
            return source.files[name]
    raise MissingWeightsError(
        f"{source.checkpoint.config.path.parent} has neither {' nor '.join(_PREPROCESSORS)}, "
        "which say how images are prepared for this model.",
        next_step="Copy them from the base model (`AutoProcessor.from_pretrained(BASE)"
        ".save_pretrained(FOLDER)`), or package only the text model with --text-only.",
    )


def _require_colours(metadata: Mapping[str, object], path: Path) -> None:
    """Check the normalization of the three colours, which the converter copies unchecked."""
    if "clip.has_vision_encoder" not in metadata:
        return
    for key in ("image_mean", "image_std"):
        value = metadata.get(f"clip.vision.{key}", [])  # an empty list is not written at all
        is_list = isinstance(value, list) and len(value) == 3
        if isinstance(value, list) and is_list and all(isinstance(x, int | float) for x in value):
            continue
        raise CorruptFileError(
            f"{path}: `{key}` is {str(value)[:80]!r}, not three numbers.",
            next_step="Copy the file from the base model.",
        )


def require_targets_held(
    merged_names: Collection[str],
    text: Conversion,
    projector: Projector | None,
    progress: Progress,
    *,
    is_text_only: bool,
) -> None:
    """Check that a GGUF holds every tensor that an adapter changes.

    Args:
        merged_names: the checkpoint's tensors that an adapter changes; empty without adapters.
        text: the text model.
        projector: the `mmproj`, if there is one.
        progress: gets a warning about what `--text-only` leaves out.
        is_text_only: whether the user wants only the text model.

    Raises:
        AdapterMismatchError: listing the tensors that no GGUF holds; with `is_text_only` only if
            no tuned tensor belongs to the text model.
    """
    in_ggufs = text.reads | (projector.conversion.reads if projector else frozenset())
    tuned = [name for name in text.checkpoint.tensors if name in merged_names]
    left_out = [name for name in tuned if name not in in_ggufs]
    if left_out and is_text_only and len(left_out) < len(tuned):
        progress.warn(
            f"--text-only leaves out {len(left_out)} tensors that the adapter has tuned: "
            f"{listed(left_out)}"
        )
    elif left_out:
        raise AdapterMismatchError(
            f"The adapter tunes {len(left_out)} tensors that would be in no GGUF of this model: "
            f"{listed(left_out)}.",
            next_step="Omit --text-only."
            if is_text_only
            else "The converter has no place for them. Merge them with `ftpack merge`, or package "
            "only what is tuned in the text model with --text-only.",
        )
