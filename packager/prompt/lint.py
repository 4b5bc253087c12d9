"""Faults of a chat template, independent of who renders it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from jinja2 import nodes

from packager.errors import ChatTemplateError, listed
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate, parse_chat_template
from packager.prompt.conversation import CORE, TOOLS, Conversation, turns
from packager.prompt.decision import turn_end
from packager.prompt.server import claims_tools

# The markers of turns in the known formats: `<|user|>`, `<start_of_turn>`, `[INST]`.
_MARKER = re.compile(r"<[|｜]?[a-zA-Z_▁]+[|｜]?>|\[/?[A-Z_]+\]")  # noqa: RUF001 - DeepSeek's own
_SYSTEM, _ANSWER = "4f1c-system-9d27", "4f1c-answer-9d27"


def lint(chat_template: ChatTemplate, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The faults, each a sentence with its effect on the model; empty if there are none.

    Args:
        chat_template: the training chat template.
        vocabulary: the special tokens of its tokenizer.
    """
    try:
        parse_chat_template(chat_template.source, chat_template.origin)
        chat_template.prompt(CORE[0])
    except ChatTemplateError as error:
        return (error.message,)
    return (
        *_refusals(chat_template),
        *_generation_prompt(chat_template),
        *_end_of_turn(chat_template, vocabulary),
        *_markers(chat_template, vocabulary),
        *_system(chat_template),
        *_bos(chat_template),
        *_date(chat_template),
    )


def _refusals(chat_template: ChatTemplate) -> Iterator[str]:
    conversations = (*CORE, *TOOLS) if claims_tools(chat_template.source) else CORE
    names_by_reason: dict[str, list[str]] = {}
    for conversation in conversations:
        try:
            chat_template.prompt(conversation)
        except ChatTemplateError as error:
            reason = error.message.partition("does not render: ")[2].strip().rstrip(".")
            names_by_reason.setdefault(reason, []).append(conversation.name)
    for reason, names in names_by_reason.items():
        yield (
            f"It refuses {_quoted(names)} ({reason}): clients that send such a conversation get "
            "an error."
        )


def _quoted(names: list[str]) -> str:
    return listed([f"'{name}'" for name in names], limit=3)


def _generation_prompt(chat_template: ChatTemplate) -> Iterator[str]:
    messages = turns("Hi")
    opened = chat_template.render(messages, add_generation_prompt=True)
    if opened != chat_template.render(messages, add_generation_prompt=False):
        return
    try:
        answered = chat_template.render(turns("Hi", _ANSWER), add_generation_prompt=False)
    except ChatTemplateError:
        return
    before = answered.partition(_ANSWER)[0]
    if before != opened:
        yield (
            "It has no generation prompt: the model must write "
            f"{before.removeprefix(opened)!r} itself before it answers."
        )


def _end_of_turn(chat_template: ChatTemplate, vocabulary: Vocabulary) -> Iterator[str]:
    end = turn_end(chat_template, vocabulary)
    if end is None:
        yield (
            "An assistant's turn has no end marker: the model did not learn to stop, and may "
            "continue with the user's turn."
        )
    elif end not in vocabulary.token_of.values():
        yield (
            f"An assistant's turn ends with {end!r}, which is not a single token: generation stops "
            "at a stop text, after the model has written it letter by letter."
        )
    elif end not in vocabulary.control_tokens:
        yield (
            f"{end!r} ends a turn, but is not a special token of the tokenizer: it appears as text "
            "if a server does not stop at it."
        )


def _markers(chat_template: ChatTemplate, vocabulary: Vocabulary) -> Iterator[str]:
    prompt = chat_template.prompt_or_none(Conversation("", turns("Hi", "Hello", "Bye")))
    tokens = {*vocabulary.token_of.values(), chat_template.bos_token, chat_template.eos_token}
    end = turn_end(chat_template, vocabulary)
    plain = [m for m in dict.fromkeys(_MARKER.findall(prompt or "")) if m not in tokens | {end}]
    if plain:
        yield (
            f"The prompt contains {_quoted(plain)}, which are not tokens: the model reads them as "
            "text, and a user's text can contain them as well."
        )


def _system(chat_template: ChatTemplate) -> Iterator[str]:
    conversation = Conversation("", turns("Hi", system=_SYSTEM))
    prompt = chat_template.prompt_or_none(conversation)
    if prompt is not None and _SYSTEM not in prompt:
        yield "It omits system turns: a system prompt has no effect."


def _bos(chat_template: ChatTemplate) -> Iterator[str]:
    bos = chat_template.bos_token
    prompts = [
        prompt for conversation in CORE if (prompt := chat_template.prompt_or_none(conversation))
    ]
    if bos and any(prompt.startswith(bos * 2) for prompt in prompts):
        yield f"It writes the BOS token {bos!r} twice."
    if bos and len({prompt.startswith(bos) for prompt in prompts}) == 2:
        yield f"It writes the BOS token {bos!r} for some conversations only."


def _date(chat_template: ChatTemplate) -> Iterator[str]:
    tree = parse_chat_template(chat_template.source, chat_template.origin)
    if not any(name.name == "strftime_now" for name in tree.find_all(nodes.Name)):
        return
    prompt = chat_template.prompt_or_none(CORE[0]) or ""
    today = datetime.now()
    if any(today.strftime(form) in prompt for form in ("%d %b %Y", "%Y-%m-%d", "%d %B %Y")):
        yield "It writes today's date: the prompt changes every day, as it did in training."
