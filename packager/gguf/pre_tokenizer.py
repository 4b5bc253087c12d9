r"""Which of llama.cpp's pre-tokenizers a tokenizer has, read from its own definition.

llama.cpp's converter recognises a pre-tokenizer by a digest of one text's token ids. These depend
on the vocabulary too, so the converter does not recognise a fine-tune that changed the vocabulary,
even if it splits text as its base does. `tokenizer.json` defines how text is split; this module
compares that definition with what llama.cpp does under each name (`llm_tokenizer_bpe` in
llama-vocab.cpp). The two can still differ in detail, so the choice is trusted only after token ids
were compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import CorruptFileError, UnsupportedError
from packager.model.model_file import ModelFile

# Steps that do not split text by a regular expression.
_BYTES = "ByteLevel"
_BY_PUNCTUATION = "Punctuation (Contiguous)"
_SPACE_AS_PIECE = "' ' becomes '\u2581'"
_AFTER_SPACES = "Split ' ' (MergedWithPrevious)"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# o200k (GPT-4o): a word begins with capitals, or is all capitals.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+" + _CONTRACTIONS + "?",
        r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*" + _CONTRACTIONS + "?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        _SPACE,
    )
)
# DeepSeek's classes: letters with case, punctuation, and Chinese characters (and some others).
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_CHINESE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CHINESE_OR_JAPANESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACE
)


@dataclass(frozen=True)
class _Known:
    """What llama.cpp does under a name.

    Attributes:
        name: for `tokenizer.ggml.pre`; the oldest of several names that do the same.
        steps: what is done to a text, in order, in the spelling of `tokenizer.json`.
        ignores_merges: whether a piece that is itself in the vocabulary becomes one token, whatever
            the merges say.
    """

    name: str
    steps: tuple[str, ...]
    ignores_merges: bool = False


# Left out are pre-tokenizers that llama.cpp only approximates ("tekken" separates marks from their
# letters, "tiny_aya" splits capitals differently), and those without a published definition.
_KNOWN = (
    _Known("gpt-2", (_GPT2, _BYTES)),
    _Known("starcoder", (r"\p{N}", _GPT2, _BYTES)),
    _Known("falcon", (_BY_PUNCTUATION, _GPT2, _BYTES, r"\p{N}+", "[0-9][0-9][0-9]")),
    _Known(
        "llama-bpe",
        ("|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _MARKS, _SPACE)), _BYTES),
        ignores_merges=True,
    ),
    _Known("smaug-bpe", ("|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _MARKS, _SPACE)), _BYTES)),
    _Known("qwen2", ("|".join((_CONTRACTIONS, _WORD, r"\p{N}", _MARKS, _SPACE)), _BYTES)),
    _Known(
        "qwen35",
        (
            "|".join(
                (
                    _CONTRACTIONS,
                    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                    r"\p{N}",
                    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                    _SPACE,
                )
            ),
            _BYTES,
        ),
    ),
    _Known(
        "seed-coder",
        ("|".join((_CONTRACTIONS, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACE)), _BYTES),
    ),
    _Known(
        "minicpm5",
        (
            r"\p{N}{1,3}",
            "|".join((_CONTRACTIONS, _WORD, r"\p{N}+", _MARKS, _SPACE)),
            _BYTES,
        ),
        ignores_merges=True,
    ),
    # llama.cpp's own "gpt-4o" separates marks from their letters (Hindi, Thai).
    _Known("granite-embed-multi-97m", (_O200K, _BYTES), ignores_merges=True),
    _Known(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            rf"\s?[{_PUNCTUATION}]+",
            r"\s+$",
            _CHINESE,
            r"\p{N}",
            _BYTES,
        ),
    ),
    _Known("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}", _BYTES)),
    _Known("deepseek-v3", (r"\p{N}{1,3}", _CHINESE_OR_JAPANESE, _DEEPSEEK_V3, _BYTES)),
    _Known("gemma4", (_SPACE_AS_PIECE, _AFTER_SPACES)),
    _Known("gemma4", (_SPACE_AS_PIECE,)),
)
# Equivalent ways to write an expression. Possessive quantifiers are the same as greedy ones here:
# no match needs backtracking.
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS),
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS),
    (r"\p{N}{1}", r"\p{N}"),
    (r"[^\r\n\p{L}\p{N}]?+", r"[^\r\n\p{L}\p{N}]?"),
    (r"[^\s\p{L}\p{N}]++", r"[^\s\p{L}\p{N}]+"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
)


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers, for a tokenizer that its converter does not know.

    Attributes:
        name: llama.cpp's name, for `tokenizer.ggml.pre`.
        definition: a short form of the definition in `tokenizer.json`.
        is_byte_level: whether every piece consists of bytes, written as letters. Otherwise a
            character without a token falls back on tokens such as `<0x0A>`.
    """

    name: str
    definition: str
    is_byte_level: bool


def find_pre_tokenizer(file: ModelFile | None, toolchain_version: str) -> PreTokenizer:
    """Find llama.cpp's name for the way in which a `tokenizer.json` splits text.

    Args:
        file: the `tokenizer.json`, if there is one.
        toolchain_version: the version of llama-cpp-python, for error messages.

    Raises:
        UnsupportedError: naming the definition, if llama.cpp has no equal pre-tokenizer.
        CorruptFileError: if the file does not hold a tokenizer.
    """
    if file is None:
        raise UnsupportedError(
            "llama.cpp's converter does not know this vocabulary, and there is no tokenizer.json "
            "that says how it splits text.",
            next_step="Write one beside the model: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER).",
        )
    match = file.parsed_by(_match)
    if match.name is None:
        raise UnsupportedError(
            f"llama.cpp's converter (llama-cpp-python {toolchain_version}) does not know the "
            f"pre-tokenizer of {file.path}, and llama.cpp has none that does the same: "
            f"{match.definition}.",
            next_step="Use the base's pre_tokenizer and normalizer if the fine-tune changed only "
            "the vocabulary; else a newer llama-cpp-python may have it: pip install -U "
            "llama-cpp-python, then `ftpack doctor --install-toolchain`.",
        )
    return PreTokenizer(match.name, match.definition, match.is_byte_level)


@dataclass(frozen=True)
class _Match:
    """What a `tokenizer.json` was recognised as: `PreTokenizer`, whose name is None if unknown."""

    name: str | None
    definition: str
    is_byte_level: bool


def _match(path: Path, tokenizer: Mapping[str, Any]) -> _Match:
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise CorruptFileError(
            f"{path} has {str(model)[:80]!r} under 'model', which is not valid there.",
            next_step="Restore the file from the training run, or download it again.",
        )
    steps = (*_steps(tokenizer.get("normalizer")), *_steps(tokenizer.get("pre_tokenizer")))
    definition = _in_short(str(model.get("type")), steps)
    alike = [known for known in _KNOWN if known.steps == steps and model.get("type") == "BPE"]
    ignores_merges = model.get("ignore_merges") is True
    exact = [known for known in alike if known.ignores_merges == ignores_merges]
    name = None
    if exact or (alike and _merges_make_every_token(tokenizer)):
        name = (exact or alike)[0].name
    elif alike:
        definition += f", ignore_merges {str(ignores_merges).lower()}"
    return _Match(name, definition, _BYTES in steps)


def _steps(part: object) -> list[str]:
    """What a normalizer or pre-tokenizer does, step by step, each in one spelling."""
    match part:
        # llama.cpp does not compose characters. The comparison of ids shows whether that matters.
        case None | {"type": "NFC"}:
            return []
        case {"type": "Sequence", "normalizers": [*parts]} | {
            "type": "Sequence",
            "pretokenizers": [*parts],
        }:
            return [step for part in parts for step in _steps(part)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return [_BYTES]
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [_GPT2, _BYTES]
    step = _split(part)
    return [json.dumps(part, ensure_ascii=False) if step is None else step]


def _split(part: object) -> str | None:
    """The single step of a part that splits text or replaces spaces; None for other parts."""
    match part:
        case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
            return _SPACE_AS_PIECE
        case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
            return _AFTER_SPACES
        # "Removed" drops the text that the expression does not match; these match everything.
        case (
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"}
            | {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Removed",
               "invert": True}
        ):  # fmt: skip
            return _spelled(regex)
        case {"type": "Digits", "individual_digits": each}:
            return r"\p{N}" if each else r"\p{N}+"
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return _BY_PUNCTUATION
    return None


def _spelled(regex: str) -> str:
    for other, ours in _SPELLINGS:
        regex = regex.replace(other, ours)
    return regex


def _in_short(model_type: str, steps: tuple[str, ...]) -> str:
    short = [step if len(step) <= 60 else f"{step[:57]}..." for step in steps]
    return f"{model_type}, split by {' then '.join(short) or 'nothing'}"


def _merges_make_every_token(tokenizer: Mapping[str, Any]) -> bool:
    """Whether merges make each token from its own text, so that ignoring them changes nothing."""
    from tokenizers import Tokenizer

    added = {token["content"] for token in tokenizer.get("added_tokens") or ()}
    bare = {
        "version": "1.0",
        "added_tokens": [],
        "model": {**tokenizer["model"], "ignore_merges": False},
    }
    tokens = [token for token in tokenizer["model"]["vocab"] if token not in added]
    encoded = Tokenizer.from_str(json.dumps(bare)).encode_batch(tokens, add_special_tokens=False)
    return all(len(encoding.ids) == 1 for encoding in encoded)
