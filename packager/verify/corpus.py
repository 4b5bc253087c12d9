"""Texts on which a GGUF's vocabulary is compared with the training tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from packager.prompt.comparison import ComparedPrompt, Comparison, TokenizerPair
from packager.prompt.conversation import Conversation, turns

# The `level` of this comparison.
VOCABULARY = "vocabulary"
_NOT_NORMALISED = "llama.cpp does not normalise text as this tokenizer does"

# Texts that pre-tokenizers treat in different ways.
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


def compare_vocabulary(tokenizers: TokenizerPair) -> Comparison:
    """Compare the token ids of every text of the corpus.

    It is a known difference if a text has the same ids only in its composed form (NFC): then the
    training tokenizer composes it, which llama.cpp does not.
    """
    return Comparison(
        VOCABULARY, tuple(_compare_text(name, text, tokenizers) for name, text in CORPUS.items())
    )


def _compare_text(name: str, text: str, tokenizers: TokenizerPair) -> ComparedPrompt:
    conversation = Conversation(name, turns(text))
    if tokenizers.has_same_ids(text):
        return ComparedPrompt(conversation, "equal", text, text)
    composed = unicodedata.normalize("NFC", text)
    if composed != text and tokenizers.has_same_ids(composed):
        return ComparedPrompt(conversation, "known_difference", text, composed, (_NOT_NORMALISED,))
    expected, rendered = (
        _lines(tokenize(text)) for tokenize in (tokenizers.training, tokenizers.gguf)
    )
    return ComparedPrompt(conversation, "different", expected, rendered)


def _lines(ids: Sequence[int]) -> str:
    """Token ids, one in a line, to be displayed side by side."""
    return "\n".join(map(str, ids))
