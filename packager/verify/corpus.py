"""Texts on which a GGUF's vocabulary is held against the tokenizer of training."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from packager.prompt.comparison import ComparedPrompt, Comparison, TokenizedBy
from packager.prompt.conversation import Conversation, turns

_NOT_NORMALISED = "llama.cpp does not normalise text as this tokenizer does"

# What pre-tokenizers treat each in its own way.
CORPUS: Mapping[str, str] = {
    "English": "It's the researchers' 3rd attempt; they'll've done 12,345.67 by 2026-11-21.",
    "German": "Der größte Teil überraschte: Straßenbahnhaltestellenäußerungen.",
    "French": "L'été, où est-ce qu'on s'est vu aujourd'hui ? C'était déjà « là-bas ».",
    "Polish": "Zażółć gęślą jaźń, proszę.",
    "Turkish": "İstanbul'da ıssız bir şehir değil.",
    "Russian": "Съешь же ещё этих мягких французских булок.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Arabic": "نصٌّ حكيمٌ له سرٌّ قاطعٌ وذو شأنٍ عظيم.",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "Hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा।",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Chinese": "我能吞下玻璃而不伤身体。二〇二六年，价格是１２３元。",
    "Japanese": "いろはにほへと、カタカナと漢字が混ざる文章。",
    "Korean": "키스의 고유조건은 입술끼리 만나야 하고.",
    "Vietnamese": "Tiếng Việt có nhiều dấu: ổ, ữ, ặ.",
    "Python": 'def f(x: int) -> str:\n    if x >= 0x1F:\n\t\treturn f"{x!r:>10}"  # done\n\n\n',
    "C": '#include <stdio.h>\nint main(void) { for (;;) printf("%d\\n", a[i++]); }\n',
    "JSON": '{"a": [1, 2.5e-3, null], "b\\u00e9": {"c": "\\\\n"}}',
    "HTML": "<div class='x'>a &amp; b<br/></div><!-- no -->",
    "LaTeX": "$\\frac{\\alpha_{1}^{2}}{\\sqrt{x}} \\leq \\infty$",
    "digits": "0 1 12 123 1234 12345 123456 1234567 12345678 3.14159 1,000,000 1e10 ٣٤ ½ ²",
    "white space": " a  b   c    d\te\t\tf\n g\n\n\nh\r\ni \n \n  ",
    "no-break and wide spaces": "a\u00a0b\u2003c\u3000d\u200be",
    "punctuation": "...!!! ?!—–-_=+*&^%$#@~`|\\/<>[]{}()«»„“”‘’…·•",
    "emoji": "🙂🙃 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ❤️ ☕️",
    "capitals": "HELLO WorlD iPhone McDONALD's THE'S I'M YOU'LL",
    "decomposed accents": "e\u0301te\u0301 n\u0303 A\u030a",
    "control characters": "a\x00b\x07c\x7fd",
    "rare letters": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 ꙮ ﷽ ǅ ﬁ",
}


def compare_vocabulary(tokenized_by: TokenizedBy) -> Comparison:
    """Compare the ids of every text of the corpus.

    A text that only has the same ids in its composed form (NFC) is declared: the tokenizer of
    training composes it first, and llama.cpp does not.
    """
    return Comparison(
        "vocabulary", tuple(_compare(name, text, tokenized_by) for name, text in CORPUS.items())
    )


def _compare(name: str, text: str, tokenized_by: TokenizedBy) -> ComparedPrompt:
    conversation = Conversation(name, turns(text))
    if _has_same_ids(text, tokenized_by):
        return ComparedPrompt(conversation, "equal", text, text)
    composed = unicodedata.normalize("NFC", text)
    if composed != text and _has_same_ids(composed, tokenized_by):
        return ComparedPrompt(conversation, "known_difference", text, composed, (_NOT_NORMALISED,))
    return ComparedPrompt(conversation, "different", *_cut_apart(text, tokenized_by))


def _has_same_ids(text: str, tokenized_by: TokenizedBy) -> bool:
    return list(tokenized_by.trained(text)) == list(tokenized_by.packaged(text))


def _cut_apart(text: str, tokenized_by: TokenizedBy) -> tuple[str, str]:
    """The ids of both as texts, one in a line, to be shown beside each other."""
    ids = (tokenized_by.trained(text), tokenized_by.packaged(text))
    trained, packaged = ("\n".join(map(str, numbers)) for numbers in ids)
    return trained, packaged
