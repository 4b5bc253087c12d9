"""The special tokens of a tokenizer, and which of them end what a model generates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import CorruptFileError
from packager.files import read_json
from packager.model.checkpoint import config_parts
from packager.prompt.chat_template import token_text

_EOS = "eos_token_id"
_MOST_TOKENS = 1 << 31  # llama.cpp counts them in 32 bits


@dataclass(frozen=True)
class Vocabulary:
    """What deciding on a prompt needs to know of a tokenizer.

    Attributes:
        eos_token_ids: the ids that end generation, in the configuration's order.
        token_of: the added tokens (special or not) and those of `eos_token_ids`, by id.
        control_tokens: the texts of the special tokens.
    """

    eos_token_ids: tuple[int, ...]
    token_of: Mapping[int, str]
    control_tokens: frozenset[str]


def load_vocabulary(files: Mapping[str, Path]) -> Vocabulary:
    """Read the vocabulary's special tokens and the ids that end generation.

    The ids are `generation_config.json`'s, as transformers' `generate` takes them, else those of
    `config.json`.

    Args:
        files: file names and paths, the fine-tune's own before the base's.

    Raises:
        CorruptFileError: if a file is not what its name says.
    """
    path = files.get("tokenizer.json")
    # Read once: it is tens of megabytes.
    tokenizer = read_json(path) if path else {}
    token_of: dict[int, str] = {}
    special: dict[int, bool] = {}
    for number, token, is_special in _added_tokens(files, tokenizer):
        token_of[number], special[number] = token, is_special
    control_tokens = frozenset(token_of[number] for number, is_it in special.items() if is_it)
    eos_token_ids = _eos_token_ids(files)
    unnamed = set(eos_token_ids) - token_of.keys()
    if unnamed:
        token_of |= {number: t for number, t in _model_tokens(tokenizer) if number in unnamed}
    return Vocabulary(eos_token_ids, token_of, control_tokens)


def _added_tokens(
    files: Mapping[str, Path], tokenizer: Mapping[str, object]
) -> Iterator[tuple[int, str, bool]]:
    """Each added token, its id and whether it is special; `tokenizer.json` has the last word."""
    if path := files.get("tokenizer_config.json"):
        decoder = read_json(path).get("added_tokens_decoder") or {}
        for number, entry in _items(decoder, path):
            yield _added_token(number, entry, path)
    if path := files.get("tokenizer.json"):
        for entry in _list(tokenizer.get("added_tokens") or [], path):
            yield _added_token(entry.get("id") if isinstance(entry, dict) else None, entry, path)


def _added_token(number: object, entry: object, path: Path) -> tuple[int, str, bool]:
    token = token_text(entry)
    if token is None or not str(number).isdecimal():
        raise _corrupt(path, "added_tokens", entry)
    is_special = isinstance(entry, dict) and entry.get("special") is True
    return int(str(number)), token, is_special


def _model_tokens(tokenizer: Mapping[str, object]) -> Iterator[tuple[int, str]]:
    """Every token of the model itself: a table of ids (BPE), or pieces in their order (Unigram)."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from ((number, token) for token, number in vocabulary.items())
    elif isinstance(vocabulary, list):
        yield from ((number, str(piece[0])) for number, piece in enumerate(vocabulary))


def _eos_token_ids(files: Mapping[str, Path]) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        if path := files.get(name):
            for values in config_parts(read_json(path)):
                if (value := values.get(_EOS)) is not None:
                    return _ids(value, path)
    return ()


def _ids(value: object, path: Path) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int and 0 <= number < _MOST_TOKENS for number in numbers):
        raise _corrupt(path, _EOS, value)
    return tuple(dict.fromkeys(numbers))


def _items(value: object, path: Path) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise _corrupt(path, "added_tokens_decoder", value)
    return list(value.items())


def _list(value: object, path: Path) -> list[object]:
    if not isinstance(value, list):
        raise _corrupt(path, "added_tokens", value)
    return value


def _corrupt(path: Path, key: str, value: object) -> CorruptFileError:
    return CorruptFileError(
        f"{path} has {str(value)[:80]!r} under {key!r}, which no tokenizer has there.",
        next_step="Restore the file from the training run, or download it again.",
    )
