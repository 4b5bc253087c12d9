"""The families of Ollama templates, recognised by what a chat template renders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packager.errors import ChatTemplateError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import Messages, conversation
from packager.prompt.go_template import render_go_template
from packager.templates import read_template

# The files of each family in templates/ollama/: one for each way of spacing the same markers.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "chatml": ("chatml",),
    "llama3": ("llama3",),
    "gemma": ("gemma",),
    "mistral": (
        "mistral",
        "mistral-v1",
        "mistral-v3",
        "mistral-v3-tekken",
        "mistral-v7",
        "mistral-v7-tekken",
    ),
    "phi": ("phi3", "phi4", "phi4-mini"),
}

# Line ends, quotes, braces and markup inside, as people write them; letters of several scripts.
_QUESTION = 'What does "a < b && {{ c }}" mean?\n\n\t- précis, s\'il vous plaît: 日本語 🙂'
_ANSWER = "It is:\n```\n{% if a %} \\n </b>\n```\nThat's all."
_SYSTEM = "You are terse.\n\nNever say 'perhaps'."
_ONE = conversation(_QUESTION)
_SEVERAL = conversation(_QUESTION, _ANSWER, "And then?", "Nothing.", "Why?")
_PROVED = (
    _ONE,
    conversation(_QUESTION, system=_SYSTEM),
    _SEVERAL,
    conversation("First.", _ANSWER, _QUESTION, system=_SYSTEM),
)
# Prompts that end in an answer which the model is to continue.
_BEGUN = (
    conversation(_QUESTION, "It begins"),
    conversation(_QUESTION, _ANSWER, "And then?", "It begins", system=_SYSTEM),
)
# What no Ollama template can do as some chat templates do it: told to the user, not held against
# the family.
_LIMITS = {
    "white space around a message": conversation(" \n padded \n "),
    "two turns of one role in a row": (
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
    ),
}


@dataclass(frozen=True)
class Family:
    """An Ollama template that renders as a chat template does.

    Attributes:
        name: the family.
        ollama_template: the template's text (Go).
        proved: how many prompts were rendered alike.
        refused: how many of those tried the chat template refuses.
        limits: for what the two differ all the same.
    """

    name: str
    ollama_template: str
    proved: int
    refused: int
    limits: tuple[str, ...]


def find_family(chat_template: ChatTemplate) -> Family | None:
    """The family whose Ollama template makes the same prompts, for every conversation tried.

    The BOS is left out of the comparison: the GGUF says whether there is one, and Ollama's
    templates have none (it would be doubled).
    """
    expected = [_prompt(chat_template, messages) for messages in _PROVED]
    begun = [_begun_prompt(chat_template, messages) for messages in _BEGUN]
    wanted = [(m, p) for m, p in zip((*_PROVED, *_BEGUN), expected + begun, strict=True) if p]
    # A template that refuses one turn or several has nothing to be compared with.
    if not (expected[_PROVED.index(_ONE)] and expected[_PROVED.index(_SEVERAL)]):
        return None
    for name, files in FAMILIES.items():
        for file in files:
            ollama_template = read_template(f"ollama/{file}.gotmpl")
            if all(render_go_template(ollama_template, m) == prompt for m, prompt in wanted):
                refused = len(expected) + len(begun) - len(wanted)
                limits = _limits(chat_template, ollama_template)
                return Family(name, ollama_template, len(wanted), refused, limits)
    return None


def _limits(chat_template: ChatTemplate, ollama_template: str) -> tuple[str, ...]:
    found = []
    for limit, messages in _LIMITS.items():
        prompt = _prompt(chat_template, messages)
        if prompt is not None and prompt != render_go_template(ollama_template, messages):
            found.append(limit)
    return tuple(found)


def _prompt(
    chat_template: ChatTemplate, messages: Sequence[Mapping[str, object]], *, opens: bool = True
) -> str | None:
    """The prompt without its BOS; None where the chat template refuses the conversation."""
    try:
        prompt = chat_template.render(messages, add_generation_prompt=opens)
    except ChatTemplateError:
        return None
    return prompt.removeprefix(chat_template.bos_token or "")


def _begun_prompt(chat_template: ChatTemplate, messages: Messages) -> str | None:
    """The prompt up to the end of its last answer (transformers' `continue_final_message`)."""
    prompt = _prompt(chat_template, messages, opens=False)
    if prompt is None:
        return None
    before, content, _ = prompt.rpartition(str(messages[-1]["content"]))
    return before + content
