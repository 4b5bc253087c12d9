"""Whether the weights have a row for every token of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from packager.errors import MissingWeightsError
from packager.model.config import ModelConfig
from packager.model.tensor_file import TensorInfo
from packager.model.tokenizer import TOKENIZER, TOKENIZER_CONFIG
from packager.source.inputs import Inputs

# Larger than any real vocabulary; below it, llama.cpp itself compares tokens with weights.
_PLAUSIBLE_VOCABULARY = 1 << 20


def require_rows(inputs: Inputs, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a vocabulary with tokens that have no rows: the model could not use them.

    A tokenizer that came with an adapter is compared with its base's, which may itself have more
    tokens than rows, as in Gemma 3.

    Args:
        inputs: the source and its base.
        config: the configuration of the merged model.
        tensors: the tensors of the merged model.

    Raises:
        MissingWeightsError: with the file and both numbers.
    """
    size = config.vocab_size
    if size is None:
        return
    rows = max((info.shape[0] for info in tensors.values() if info.shape), default=0)
    if size > max(rows, _PLAUSIBLE_VOCABULARY):
        raise MissingWeightsError(
            f"{config.path} has `vocab_size` {size:,}, but the longest tensor has {rows:,} rows.",
            next_step="Download or save the model again: its config.json and its weights do not "
            "belong together.",
        )
    _require_adapter_rows(inputs, size)


def _require_adapter_rows(inputs: Inputs, size: int) -> None:
    """Refuse a tokenizer from an adapter that has more tokens than the model has rows."""
    own = [
        name
        for name in (TOKENIZER, TOKENIZER_CONFIG)
        if inputs.files.get(name) != inputs.base_files.get(name)
    ]
    if inputs.base is None or not own:
        return
    tokens = inputs.vocabulary.token_of
    without = sorted(number for number in tokens if number >= size)
    if without:
        largest_of_base = max(inputs.base_vocabulary.token_of, default=0)
        without = [number for number in without if number > largest_of_base]
    if without:
        path = inputs.files[own[0]].path
        raise MissingWeightsError(
            f"{path} has {len(without)} tokens without rows in the model, such as "
            f"{tokens[without[0]]!r} ({without[0]}): the model has {size:,} rows.",
            next_step="Save the adapter with the embeddings that were resized for it "
            "(save_pretrained with save_embedding_layers=True); if the tokens were never trained, "
            f"remove the tokenizer's files from {path.parent} to use the base's.",
        )
