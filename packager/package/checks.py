"""What is wrong with a model or its merge, or costs more than it seems to."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from packager.errors import FtpackError, MissingWeightsError, UnsupportedError, listed
from packager.files import format_bytes, read_json
from packager.gguf.convert import Conversion
from packager.gguf.quants import Quant
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import TypedQuant
from packager.merge.merged import MergedCheckpoint
from packager.merge.peft.layout import Layout
from packager.model.checkpoint import Checkpoint
from packager.package.plan import Request, estimate_run_memory
from packager.progress import Progress
from packager.source.inputs import Inputs

# The files that tell of a tokenizer's added tokens.
_ADDED_TOKENS = ("tokenizer.json", "tokenizer_config.json")
# Larger than any vocabulary; what is below, llama.cpp itself holds against the weights.
_PLAUSIBLE_VOCABULARY = 1 << 20


def require_rows(inputs: Inputs, config_path: Path, checkpoint: Checkpoint) -> None:
    """Refuse a vocabulary for which there are no rows: the model would have no such tokens.

    Args:
        inputs: a tokenizer that came with an adapter is held against its base's, which may itself
            have more tokens than rows, as Gemma 3's.
        config_path: the configuration, as merging leaves it.
        checkpoint: what is merged.

    Raises:
        MissingWeightsError: naming the file and both counts.
    """
    config = read_json(config_path)
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    if not isinstance(size, int):
        return
    rows = max((info.shape[0] for info in checkpoint.tensors.values() if info.shape), default=0)
    if size > max(rows, _PLAUSIBLE_VOCABULARY):
        raise MissingWeightsError(
            f"{config_path} says `vocab_size` {size:,}, and the longest tensor has {rows:,} rows.",
            next_step="Download or save the model again: config.json and weights do not agree.",
        )
    own = [name for name in _ADDED_TOKENS if inputs.files.get(name) != inputs.base_files.get(name)]
    if inputs.base is None or not own:
        return
    tokens = inputs.vocabulary.token_of
    without = sorted(number for number in tokens if number >= size)
    if without:
        known = max(inputs.base_vocabulary.token_of, default=0)
        without = [number for number in without if number > known]
    if without:
        raise MissingWeightsError(
            f"{inputs.files[own[0]]} has {len(without)} tokens for which the model has no rows, "
            f"such as {tokens[without[0]]!r} ({without[0]}): it has {size:,}.",
            next_step="Save the adapter with the embeddings that were resized for it "
            "(save_pretrained with save_embedding_layers=True); if the tokens were never trained, "
            f"remove the tokenizer's files from {inputs.files[own[0]].parent} to use the base's.",
        )


def require_whole(
    checkpoint: Checkpoint, config_path: Path, request: Request, progress: Progress
) -> None:
    """Refuse weights that are not all of the model: transformers would fill in random ones.

    Raises:
        MissingWeightsError: listing what is missing, or has another shape than the model.
    """
    try:
        faults = Layout(checkpoint.tensors, config_path.parent).faults()
    except UnsupportedError as error:
        progress.note(f"Whether all of the model is there was not checked: {error.message}")
        return
    if not faults:
        return
    refused = MissingWeightsError(
        f"The weights are not those of the model in {config_path}: {listed(faults, '; ')}.",
        next_step="Download or save the model again; an adapter alone needs its "
        "adapter_config.json. With --force it is written all the same.",
    )
    _raise_unless_forced(refused, request, progress)


def require_loaded(
    reason: str | None, toolchain: Toolchain, request: Request, progress: Progress
) -> None:
    """What llama.cpp would not load is not made: most often, tensors of the model are missing."""
    if reason is None:
        return
    refused = UnsupportedError(
        f"llama.cpp (llama-cpp-python {toolchain.version}) would not load this model: {reason}.",
        next_step="Compare config.json with the weights, or download or save the model again; "
        "with --force the files are made all the same.",
    )
    _raise_unless_forced(refused, request, progress)


def _raise_unless_forced(error: FtpackError, request: Request, progress: Progress) -> None:
    if not request.force:
        raise error
    progress.warn(error.message.removesuffix("."))


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
