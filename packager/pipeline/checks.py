"""What is wrong with a model or its merge, or costs more than it seems to."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from packager.checkpoint import Checkpoint
from packager.errors import MissingWeightsError, UnsupportedError
from packager.files import format_bytes, read_json
from packager.gguf.convert import Conversion
from packager.gguf.quants import Quant
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import TypedQuant
from packager.merge.merged import MergedCheckpoint
from packager.plan import Request, estimate_run_memory
from packager.progress import Progress

# Larger than any vocabulary; what is below, llama.cpp itself holds against the weights.
_PLAUSIBLE_VOCABULARY = 1 << 20


def require_rows(config_path: Path, checkpoint: Checkpoint) -> None:
    """Refuse a vocabulary for which there are no rows: the converter would fill it up with more."""
    config = read_json(config_path)
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    rows = max((info.shape[0] for info in checkpoint.tensors.values() if info.shape), default=0)
    if isinstance(size, int) and size > max(rows, _PLAUSIBLE_VOCABULARY):
        raise MissingWeightsError(
            f"{config_path} says `vocab_size` {size:,}, and the longest tensor has {rows:,} rows.",
            next_step="Download or save the model again: config.json and weights do not agree.",
        )


def require_loaded(
    reason: str | None, toolchain: Toolchain, request: Request, progress: Progress
) -> None:
    """What llama.cpp would not load is not made: most often, tensors of the model are missing."""
    if reason is None:
        return
    message = (
        f"llama.cpp (llama-cpp-python {toolchain.version}) would not load this model: {reason}"
    )
    if request.force:
        progress.warn(message)
        return
    raise UnsupportedError(
        f"{message}.",
        next_step="Compare config.json with the weights, or download or save the model again; "
        "with --force the files are made all the same.",
    )


def require_merged(
    checkpoint: Checkpoint, progress: Progress, read: Collection[str] | None = None
) -> None:
    """See, after everything was read, that the adapters are in the result; say if they are nothing.

    Args:
        checkpoint: what was read.
        progress: told where an adapter is untrained.
        read: the tensors that were to be read; None for all.

    Raises:
        AdapterMismatchError: if something of an adapter was left out.
    """
    if not isinstance(checkpoint, MergedCheckpoint):
        return
    checkpoint.require_all_used(read)
    if checkpoint.is_untrained:
        progress.warn("The adapter changes nothing (it is untrained): the model is its base")


def warn_of_context(context_length: int | None, conversion: Conversion, progress: Progress) -> None:
    """Say what a context that was asked for costs."""
    if not context_length:
        return
    key_values = {key: item.value for key, item in conversion.key_values.items()}
    cache = format_bytes(estimate_run_memory(0, key_values, context_length))
    progress.note(f"Context: {context_length} tokens, whose keys and values take {cache}")
    factor = conversion.value("rope.scaling.factor")
    if conversion.value("rope.scaling.type") == "yarn":
        progress.warn(
            f"YaRN stretches every position by {factor:.3g}, in short texts too: the model was not "
            "trained so, and may answer worse everywhere. Take the shortest context that does"
        )


def refuse_imatrix(typed: tuple[TypedQuant, ...], wanted: list[Quant]) -> None:
    """What llama.cpp makes only with an importance matrix is not made."""
    needing = [item.quant.name for item in typed if item.needs_imatrix and item.quant in wanted]
    if needing:
        raise UnsupportedError(
            f"llama.cpp makes {', '.join(needing)} only with an importance matrix.",
            next_step="Choose a larger quant: `ftpack gguf SOURCE --dry-run` lists them.",
        )
