"""How published models split text: the `normalizer`, `pre_tokenizer` and `ignore_merges` of each.

From their `tokenizer.json`; those after Gemma from llama.cpp's llama-vocab.cpp, which quotes the
original expressions. Where llama.cpp's sources carry a model's vocabulary too, its converter has to
recognise the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NFC = {"type": "NFC"}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_BYTES_BY_REGEX = {**_BYTES, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPACES_AS_PIECES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}


def split(regex: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    """A step that splits by an expression."""
    return {
        "type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert,
    }  # fmt: skip


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """Steps, one after the other."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_QWEN_3_5 = QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{M}\p{N}]+"
)
# What DeepSeek LLM takes for letters that have a case, and for punctuation.
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
_CHINESE, _CHINESE_OR_JAPANESE = (
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
)
_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
# cl100k as OpenAI publishes it, with possessive quantifiers.
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Published:
    """A published model's way to split text.

    Attributes:
        name: what llama.cpp calls it, where its converter knows the vocabulary.
        pre_tokenizer: as in `tokenizer.json`.
        normalizer: likewise.
        ignore_merges: likewise.
        vocabulary: its own is `models/ggml-vocab-{vocabulary}.gguf`; None if that is not there.
    """

    name: str
    pre_tokenizer: dict[str, Any] | None
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    vocabulary: str | None = None


PUBLISHED = {
    "GPT-2": Published("gpt-2", _BYTES_BY_REGEX, vocabulary="gpt-2"),
    "StarCoder 2": Published(
        "starcoder", sequence(_DIGITS, _BYTES_BY_REGEX), vocabulary="starcoder"
    ),
    "Llama 3": Published(
        "llama-bpe", sequence(split(LLAMA_3), _BYTES), None, True, vocabulary="llama-bpe"
    ),
    "Smaug": Published("smaug-bpe", sequence(split(LLAMA_3), _BYTES)),
    "GPT-4": Published(
        "smaug-bpe", sequence(split(_CL100K, "Removed", invert=True), _BYTES)
    ),
    "Qwen 2": Published("qwen2", sequence(split(QWEN_2), _BYTES), _NFC, vocabulary="qwen2"),
    "Qwen 3.5": Published(
        "qwen35", sequence(split(_QWEN_3_5), _BYTES), _NFC
    ),
    "GPT-4o": Published(
        "granite-embed-multi-97m", sequence(split(O200K, "Removed", invert=True), _BYTES)
    ),
    "gpt-oss": Published("granite-embed-multi-97m", sequence(split(O200K), _BYTES), None, True),
    "DeepSeek LLM": Published(
        "deepseek-llm",
        sequence(split("[\r\n]"), split(rf"\s?[{_CASED_LETTERS}]+"),
                 split(rf"\s?[{_PUNCTUATION}]+"), split(r"\s+$"), split(_CHINESE), _DIGITS,
                 _BYTES),
        vocabulary="deepseek-llm",
    ),
    "DeepSeek Coder": Published(
        "deepseek-coder",
        sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
                 split(_CHINESE), _DIGITS, _BYTES),
        vocabulary="deepseek-coder",
    ),
    "DeepSeek V3": Published(
        "deepseek-v3",
        sequence(split(r"\p{N}{1,3}"), split(_CHINESE_OR_JAPANESE), split(_DEEPSEEK_V3), _BYTES),
        {"type": "Sequence", "normalizers": []},
    ),
    "Falcon": Published(
        "falcon",
        sequence({"type": "Punctuation", "behavior": "Contiguous"}, _BYTES_BY_REGEX,
                 {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")),
        vocabulary="falcon",
    ),
    "Gemma 3": Published(
        "gemma4",
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
         "invert": False},
        _SPACES_AS_PIECES,
    ),
    "Seed Coder": Published(
        "seed-coder",
        sequence(
            split(LLAMA_3.replace("{1,3}", "{1}")
                  .replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", " ?[^\\s\\p{L}\\p{N}\r\n]+")),
            _BYTES,
        ),
    ),
    "MiniCPM 5": Published(
        "minicpm5",
        sequence(split(r"\p{N}{1,3}"), split(LLAMA_3.replace("{1,3}", "+")), _BYTES),
        None,
        True,
    ),
}  # fmt: skip

# llama.cpp has a pre-tokenizer for it, and splits Arabic, Hindi and Thai otherwise.
MISTRAL_NEMO = sequence(split(O200K.replace(_CONTRACTIONS + "?", "").replace("{1,3}", "")), _BYTES)
