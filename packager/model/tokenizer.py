"""A tokenizer's files: special tokens, the ids that end an answer, and the ids of a text.

Each file is read once (`ModelFile`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import RESTORE_FILE, CorruptFileError
from packager.model.config import ModelConfig
from packager.model.model_file import ModelFile

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION_CONFIG = "generation_config.json"
_EOS = "eos_token_id"
_MOST_TOKENS = 1 << 31  # llama.cpp counts them in 32 bits


@dataclass(frozen=True)
class Vocabulary:
    """The facts about a tokenizer that the prompt depends on.

    Attributes:
        eos_token_ids: the ids that end generation, in the configuration's order.
        token_of: the added tokens (special or not) and those of `eos_token_ids`, by id.
        control_tokens: the texts of the special tokens.
    """

    eos_token_ids: tuple[int, ...]
    token_of: Mapping[int, str]
    control_tokens: frozenset[str]


def added_tokens(file: ModelFile) -> object:
    """The value of `added_tokens` in a `tokenizer.json`: a list, if the file is valid.

    The file is parsed once; its megabytes of tokens and merges are not kept.

    Raises:
        CorruptFileError: if it cannot be read, or does not hold a JSON object.
    """
    return file.parsed_by(_added_tokens_value)


def load_vocabulary(files: Mapping[str, ModelFile], config: ModelConfig | None) -> Vocabulary:
    """The special tokens of a tokenizer, and the ids that end generation.

    The ids come from `generation_config.json`, as in transformers' `generate`, else from
    `config.json`.

    Args:
        files: the files by name; the fine-tune's own replace the base's.
        config: the model's configuration; None if it is not available.

    Raises:
        CorruptFileError: if a file is not valid.
    """
    token_of: dict[int, str] = {}
    special: dict[int, bool] = {}
    for token in _added_tokens(files):
        token_of[token.number], special[token.number] = token.text, token.is_special
    control_tokens = frozenset(token_of[number] for number, is_it in special.items() if is_it)
    eos_token_ids = _eos_token_ids(files, config)
    if (unnamed := set(eos_token_ids) - token_of.keys()) and TOKENIZER in files:
        # Rarely needed, and large: it has a parser of its own.
        tokens = files[TOKENIZER].parsed_by(_model_tokens)
        token_of |= {number: tokens[number] for number in unnamed & tokens.keys()}
    return Vocabulary(eos_token_ids, token_of, control_tokens)


def token_text(value: object) -> str | None:
    """The text of a token that a configuration gives as a string or as an `AddedToken`."""
    match value:
        case str(text) | {"content": str(text)}:
            return text
    return None


def load_tokenizer(files: Mapping[str, ModelFile], scratch: Path) -> Callable[[str], list[int]]:
    """The training tokenizer, as a function from a text with special tokens to its ids.

    The ids are those of `apply_chat_template(tokenize=True)`: without tokens added at either end.

    Args:
        files: the files by name; the fine-tune's own replace the base's.
        scratch: a folder of the run, used if there is no `tokenizer.json`.

    Raises:
        CorruptFileError: if the files do not form a tokenizer.
    """
    try:
        if file := files.get(TOKENIZER):
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(file.path))
            fast.no_truncation()
            fast.no_padding()
            return lambda prompt: list(fast.encode(prompt, add_special_tokens=False).ids)
        return _load_slow_tokenizer(files, scratch)
    # Both libraries raise many types, often a bare Exception.
    except Exception as error:
        raise CorruptFileError(
            f"The tokenizer cannot be read: {error}",
            next_step="Restore tokenizer.json from the training run or the base.",
        ) from error


def _load_slow_tokenizer(
    files: Mapping[str, ModelFile], scratch: Path
) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    folder = scratch / "tokenizer"
    folder.mkdir(exist_ok=True)
    for name, file in files.items():
        if "/" not in name and not (folder / name).is_symlink():
            (folder / name).symlink_to(file.path.absolute())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda prompt: list(tokenizer.encode(prompt, add_special_tokens=False))


def _added_tokens_value(_: Path, content: Mapping[str, object]) -> object:
    return content.get("added_tokens")


def _model_tokens(_: Path, content: Mapping[str, object]) -> dict[int, str]:
    """The tokens that are not added ones: a table of ids (BPE), or pieces in order (Unigram)."""
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {number: token for token, number in vocabulary.items()}
    if isinstance(vocabulary, list):
        return {number: str(piece[0]) for number, piece in enumerate(vocabulary)}
    return {}


@dataclass(frozen=True)
class _AddedToken:
    number: int
    text: str
    is_special: bool


def _added_tokens(files: Mapping[str, ModelFile]) -> Iterator[_AddedToken]:
    """Each added token; those of `tokenizer.json` come last."""
    if file := files.get(TOKENIZER_CONFIG):
        decoder = file.json.get("added_tokens_decoder") or {}
        for number, entry in _items(decoder, file.path):
            yield _added_token(number, entry, file.path)
    if file := files.get(TOKENIZER):
        for entry in _list(added_tokens(file) or [], file.path):
            own_id = entry.get("id") if isinstance(entry, dict) else None
            yield _added_token(own_id, entry, file.path)


def _added_token(number: object, entry: object, path: Path) -> _AddedToken:
    text = token_text(entry)
    if text is None or not str(number).isdecimal():
        raise _corrupt(path, "added_tokens", entry)
    is_special = isinstance(entry, dict) and entry.get("special") is True
    return _AddedToken(int(str(number)), text, is_special)


def _eos_token_ids(files: Mapping[str, ModelFile], config: ModelConfig | None) -> tuple[int, ...]:
    file = files.get(_GENERATION_CONFIG)
    if file and (value := file.json.get(_EOS)) is not None:
        return _ids(value, file.path)
    for part in config.parts if config else ():
        if config and (value := part.get(_EOS)) is not None:
            return _ids(value, config.path)
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
        f"{path} has {str(value)[:80]!r} under {key!r}, which is not valid there.",
        next_step=RESTORE_FILE,
    )
