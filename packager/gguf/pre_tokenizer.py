r"""Which of llama.cpp's pre-tokenizers a tokenizer has, read from its own definition.

llama.cpp's converter recognises a pre-tokenizer by a digest of the ids that it makes of one text.
They depend on the vocabulary too: a fine-tune that has changed it is unknown there, though it
splits text as its base does. How it splits is written in `tokenizer.json`; here that is held
against what llama.cpp does under each name (`llm_tokenizer_bpe` in llama-vocab.cpp). That is not
always the same to the letter, so the ids have to prove the choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import CorruptFileError, UnsupportedError
from packager.files import read_json

# Steps other than a regular expression by which text is split.
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
# DeepSeek's: letters that have a case, punctuation, and Chinese characters (with others).
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
        name: for `tokenizer.ggml.pre`; of several that do the same, the oldest.
        steps: what is done to a text, in order, in the spelling of `tokenizer.json`.
        ignores_merges: whether a piece that is a token of the vocabulary is taken whole.
    """

    name: str
    steps: tuple[str, ...]
    ignores_merges: bool = False


# Left out: what llama.cpp does only nearly ("tekken" tears marks off too, "tiny_aya" splits
# capitals otherwise), and what no published definition was at hand for.
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
    # What llama.cpp does as "gpt-4o" tears marks off their letters (Hindi, Thai).
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
# Other ways to write the same; where a quantifier is possessive, nothing could be given back.
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
    """One of llama.cpp's pre-tokenizers, found for a tokenizer that its converter does not know.

    Attributes:
        name: llama.cpp's, for `tokenizer.ggml.pre`.
        definition: what of `tokenizer.json` it was found by, in short.
        is_byte_level: whether every piece is made of bytes written as letters; else a character
            that is no token falls back on tokens such as `<0x0A>`.
    """

    name: str
    definition: str
    is_byte_level: bool


def find_pre_tokenizer(path: Path | None, toolchain_version: str) -> PreTokenizer:
    """Find llama.cpp's name for how a `tokenizer.json` splits text.

    Args:
        path: the file, if there is one.
        toolchain_version: the version of llama-cpp-python, to be named in an error.

    Raises:
        UnsupportedError: naming the definition, if llama.cpp does nothing of the kind.
        CorruptFileError: if the file is no tokenizer's.
    """
    if path is None:
        raise UnsupportedError(
            "llama.cpp's converter does not know this vocabulary, and without a tokenizer.json "
            "nothing says how it splits text.",
            next_step="Write one beside the model: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER).",
        )
    tokenizer = read_json(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise CorruptFileError(
            f"{path} has {str(model)[:80]!r} under 'model', which no tokenizer has there.",
            next_step="Restore the file from the training run, or download it again.",
        )
    steps = (*_steps(tokenizer.get("normalizer")), *_steps(tokenizer.get("pre_tokenizer")))
    definition = _in_short(str(model.get("type")), steps)
    alike = [known for known in _KNOWN if known.steps == steps and model.get("type") == "BPE"]
    ignores_merges = model.get("ignore_merges") is True
    exact = [known for known in alike if known.ignores_merges == ignores_merges]
    if exact or (alike and _merges_make_every_token(tokenizer)):
        return PreTokenizer((exact or alike)[0].name, definition, _BYTES in steps)
    if alike:
        definition += f", ignore_merges {str(ignores_merges).lower()}"
    raise UnsupportedError(
        f"llama.cpp's converter (llama-cpp-python {toolchain_version}) does not know the "
        f"pre-tokenizer of {path}, and llama.cpp has none that does the same: {definition}.",
        next_step="Use the base's pre_tokenizer and normalizer if the fine-tune only changed the "
        "vocabulary; else a newer llama-cpp-python may have it: pip install -U llama-cpp-python, "
        "then `ftpack doctor --install-toolchain`.",
    )


def _steps(part: object) -> list[str]:
    """What a normalizer or pre-tokenizer does, step by step, each in one spelling."""
    match part:
        # llama.cpp composes nothing: the ids of composed text show whether it does for the rest.
        case None | {"type": "NFC"}:
            return []
        case {"type": "Sequence", "normalizers": [*parts]}:
            return [step for part in parts for step in _steps(part)]
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return [step for part in parts for step in _steps(part)]
        case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
            return [_SPACE_AS_PIECE]
        case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
            return [_AFTER_SPACES]
        # All that is not split off is dropped by the latter; these expressions leave nothing.
        case (
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"}
            | {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Removed",
               "invert": True}
        ):  # fmt: skip
            return [_spelled(regex)]
        case {"type": "Digits", "individual_digits": each}:
            return [r"\p{N}" if each else r"\p{N}+"]
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return [_BY_PUNCTUATION]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return [_BYTES]
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [_GPT2, _BYTES]
    return [json.dumps(part, ensure_ascii=False)]


def _spelled(regex: str) -> str:
    for other, ours in _SPELLINGS:
        regex = regex.replace(other, ours)
    return regex


def _in_short(model_type: str, steps: tuple[str, ...]) -> str:
    shown = [step if len(step) <= 60 else f"{step[:57]}..." for step in steps]
    return f"{model_type}, split by {' then '.join(shown) or 'nothing'}"


def _merges_make_every_token(tokenizer: Mapping[str, Any]) -> bool:
    """Whether it is all the same if merges are ignored for a piece that is a token itself."""
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
