"""Conversations whose prompts are compared: a battery of our own, and the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Message = Mapping[str, object]
Messages = tuple[Message, ...]
Kind = Literal["core", "prefill", "tools", "thinking", "own"]


@dataclass(frozen=True)
class Conversation:
    """A conversation whose prompt is compared.

    Attributes:
        name: what is special about it, in words.
        messages: `role` and `content` of each turn; also `tool_calls`, `reasoning_content` and
            further keys of transformers' chat templates, if a turn has them.
        kind: `core` is plain text, which every renderer must render as in training; the others need
            more than some servers can do. `own` is the user's, and treated as plain text.
        tools: JSON schemas of functions, as for transformers.
        thinking: the value of `enable_thinking`; None for its value in training.
    """

    name: str
    messages: Messages
    kind: Kind = "core"
    tools: tuple[Mapping[str, object], ...] = ()
    thinking: bool | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it ends with an answer that the model should continue (a prefill)."""
        return bool(self.messages) and self.messages[-1].get("role") == "assistant"

    @property
    def begun_answer(self) -> str:
        """The text that the model should continue; `""` if there is none."""
        return str(self.messages[-1].get("content") or "") if self.is_begun else ""

    @property
    def is_plain(self) -> bool:
        """Whether every renderer must render it as in training."""
        return self.kind in ("core", "own")


def turns(*contents: str, system: str | None = None) -> Messages:
    """Alternating turns of user and assistant, after a system turn if its text is given."""
    first = ({"role": "system", "content": system},) if system is not None else ()
    rest = ({"role": ("user", "assistant")[at % 2], "content": c} for at, c in enumerate(contents))
    return (*first, *rest)


# Line ends, quotes, braces, markup, and letters of several scripts, as people write them.
_QUESTION = 'What does "a < b && {{ c }}" mean?\n\n\t- précis, s\'il vous plaît: 日本語 🙂'
_ANSWER = "It is:\n```\n{% if a %} \\n </b>\n```\nThat's all."
_SYSTEM = "You are terse.\n\nNever say 'perhaps'."
_TWENTY = tuple(f"Turn {number}." for number in range(1, 20))
_TWO_USERS = (*turns("One."), *turns("Two."))
_LATE_SYSTEM: Messages = (
    *turns("One.", "Two."),
    {"role": "system", "content": "Now be brief."},
    *turns("Three."),
)

CORE: tuple[Conversation, ...] = (
    Conversation("one user turn", turns("Hi")),
    Conversation("quotes, braces, scripts", turns(_QUESTION)),
    Conversation("system and user", turns("Hi", system="Be brief.")),
    Conversation("a system text of several lines", turns(_QUESTION, system=_SYSTEM)),
    Conversation("an empty system text", turns("Hi", system="")),
    Conversation("two exchanges", turns("Hi", "Hello!", "Who are you?")),
    Conversation("an answer with code", turns(_QUESTION, _ANSWER, "And then?")),
    Conversation(
        "system and three exchanges",
        turns("First.", _ANSWER, _QUESTION, "Nothing.", "Why?", system=_SYSTEM),
    ),
    Conversation("twenty turns", turns(*_TWENTY, system="Count.")),
    Conversation("two user turns in a row", _TWO_USERS),
    Conversation("two user turns in a row, later", (*turns("Hi", "Hello!"), *_TWO_USERS)),
    Conversation("a system turn in the middle", _LATE_SYSTEM),
    Conversation("white space around a message", turns(" \n padded \n ")),
    Conversation("white space around an answer", turns("Hi", " \n padded \n\n", "So?")),
    Conversation("white space around a system text", turns("Hi", system=" \n Be brief.\n")),
    Conversation("an empty message", turns("")),
    Conversation("an empty answer", turns("Hi", "", "Well?")),
    Conversation("only white space", turns(" \n\t ")),
    Conversation("several line ends", turns("a\n\n\n\nb\n", "c\n\n\nd", "\n\ne")),
    Conversation("emoji and joined letters", turns("👩‍👩‍👧 é ﷽ 🏳️‍🌈 नमस्ते", "🙂", "שלום")),
    Conversation("a template's braces", turns("{{ bos_token }}{% endif %}", "{# no #}", "{")),
    Conversation("markup that looks like a marker", turns("<b>[INST] ### User: <|x|>")),
)

PREFILLED: tuple[Conversation, ...] = (
    Conversation("an answer begun", turns("Hi", "It begins"), "prefill"),
    Conversation(
        "an answer begun, after others",
        turns(_QUESTION, _ANSWER, "And then?", "It begins", system=_SYSTEM),
        "prefill",
    ),
)

_WEATHER: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, now.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
# A tool with keys that Ollama's own types cannot hold.
_SEARCH: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Looks texts up <b>fast</b>.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "minLength": 1},
                "limit": {"type": "integer", "default": 10, "minimum": 1},
            },
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}


def _call(name: str, number: int, **arguments: object) -> Mapping[str, object]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


def _result(name: str, number: int, content: str) -> Message:
    return {"role": "tool", "name": name, "tool_call_id": f"call{number:05d}", "content": content}


_ASKED = turns("What is the weather in Rome?")
_CALLED: Messages = (
    *_ASKED,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [_call("get_weather", 1, city="Rome", unit="celsius")],
    },
)
_CALLED_TWICE: Messages = (
    *turns("And in Rome and Oslo?"),
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [_call("get_weather", 1, city="Rome"), _call("get_weather", 2, city="Oslo")],
    },
)

TOOLS: tuple[Conversation, ...] = (
    Conversation("a tool offered", _ASKED, "tools", (_WEATHER,)),
    Conversation(
        "a tool offered, with a system text",
        turns("What is the weather in Rome?", system="Be brief."),
        "tools",
        (_WEATHER,),
    ),
    Conversation("tools with defaults and limits", _ASKED, "tools", (_WEATHER, _SEARCH)),
    Conversation(
        "a call and its result",
        (*_CALLED, _result("get_weather", 1, '{"celsius": 21}')),
        "tools",
        (_WEATHER,),
    ),
    Conversation(
        "calls in parallel",
        (
            *_CALLED_TWICE,
            _result("get_weather", 1, "21"),
            _result("get_weather", 2, "4"),
        ),
        "tools",
        (_WEATHER,),
    ),
    Conversation(
        "a call, its result, an answer, and a question",
        (
            *_CALLED,
            _result("get_weather", 1, "21"),
            {"role": "assistant", "content": "21 degrees."},
            *turns("Thanks! And tomorrow?"),
        ),
        "tools",
        (_WEATHER,),
    ),
)

_REASONED: Messages = (
    *turns("2 + 2?"),
    {"role": "assistant", "content": "4.", "reasoning_content": "Two and two are four."},
    *turns("Sure?"),
)
THINKING: tuple[Conversation, ...] = (
    Conversation("thinking on", turns("2 + 2?"), "thinking", thinking=True),
    Conversation("thinking off", turns("2 + 2?"), "thinking", thinking=False),
    Conversation(
        "thinking off, with a system text and a history",
        turns("Hi", "Hello!", "2 + 2?", system="Be brief."),
        "thinking",
        thinking=False,
    ),
    Conversation("reasoning in the history", _REASONED, "thinking"),
    Conversation(
        "reasoning inside an answer",
        turns("2 + 2?", "<think>\nFour.\n</think>\n\n4.", "Sure?"),
        "thinking",
    ),
)

BATTERY: tuple[Conversation, ...] = (*CORE, *PREFILLED, *TOOLS, *THINKING)
