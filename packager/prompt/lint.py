"""What is wrong with a chat template, whoever renders it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from jinja2 import nodes

from packager.errors import ChatTemplateError
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate, parse_chat_template
from packager.prompt.conversation import CORE, TOOLS, Conversation, turns
from packager.prompt.decision import turn_end
from packager.prompt.native import prompt_or_none
from packager.prompt.server import claims_tools

# What marks turns in the formats that there are: `<|user|>`, `<start_of_turn>`, `[INST]`.
_MARKER = re.compile(r"<[|｜]?[a-zA-Z_▁]+[|｜]?>|\[/?[A-Z_]+\]")  # noqa: RUF001 - DeepSeek's own
_SYSTEM, _ANSWER = "4f1c-system-9d27", "4f1c-answer-9d27"


def lint(chat_template: ChatTemplate, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Findings, each a sentence that says what it does to the model; empty where all is well.

    Args:
        chat_template: the one of training.
        vocabulary: its tokenizer's special tokens.
    """
    try:
        parse_chat_template(chat_template.source, chat_template.origin)
        chat_template.prompt(CORE[0])
    except ChatTemplateError as error:
        return (error.message,)
    return (
        *_refused(chat_template),
        *_generation_prompt(chat_template),
        *_end_of_turn(chat_template, vocabulary),
        *_markers(chat_template, vocabulary),
        *_system(chat_template),
        *_bos(chat_template),
        *_date(chat_template),
    )


def _refused(chat_template: ChatTemplate) -> Iterator[str]:
    conversation = (*CORE, *TOOLS) if claims_tools(chat_template.source) else CORE
    refused: dict[str, list[str]] = {}
    for each in conversation:
        try:
            chat_template.prompt(each)
        except ChatTemplateError as error:
            reason = error.message.partition("does not render: ")[2].strip().rstrip(".")
            refused.setdefault(reason, []).append(each.name)
    for reason, names in refused.items():
        yield (
            f"It refuses {_listed(names)} ({reason}): clients that send such a conversation get "
            "an error."
        )


def _listed(names: list[str]) -> str:
    shown = names[:3]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(f"'{name}'" for name in shown) + more


def _generation_prompt(chat_template: ChatTemplate) -> Iterator[str]:
    messages = turns("Hi")
    opened = chat_template.render(messages, add_generation_prompt=True)
    if opened != chat_template.render(messages, add_generation_prompt=False):
        return
    answered = turns("Hi", _ANSWER)
    try:
        whole = chat_template.render(answered, add_generation_prompt=False)
    except ChatTemplateError:
        return
    before = whole.partition(_ANSWER)[0]
    if before != opened:
        yield (
            "It has no generation prompt: the model has to write "
            f"{before.removeprefix(opened)!r} itself before it answers."
        )


def _end_of_turn(chat_template: ChatTemplate, vocabulary: Vocabulary) -> Iterator[str]:
    end = turn_end(chat_template, vocabulary)
    if end is None:
        yield (
            "An assistant's turn has no end of its own: the model was not taught to stop, and may "
            "go on with the user's turn."
        )
    elif end not in vocabulary.token_of.values():
        yield (
            f"An assistant's turn ends with {end!r}, which is no single token: generation ends by "
            "a stop text, after the model has written it letter by letter."
        )
    elif end not in vocabulary.control_tokens:
        yield (
            f"{end!r} ends a turn, but is not a special token of the tokenizer: it is shown as "
            "text where a server does not stop at it."
        )


def _markers(chat_template: ChatTemplate, vocabulary: Vocabulary) -> Iterator[str]:
    prompt = prompt_or_none(chat_template, Conversation("", turns("Hi", "Hello", "Bye")))
    tokens = {*vocabulary.token_of.values(), chat_template.bos_token, chat_template.eos_token}
    end = turn_end(chat_template, vocabulary)
    plain = [m for m in dict.fromkeys(_MARKER.findall(prompt or "")) if m not in tokens | {end}]
    if plain:
        yield (
            f"{_listed(plain)} stand in the prompt, but are no tokens of their own: the model "
            "reads them as text, and a user's text can hold them as well."
        )


def _system(chat_template: ChatTemplate) -> Iterator[str]:
    conversation = Conversation("", turns("Hi", system=_SYSTEM))
    prompt = prompt_or_none(chat_template, conversation)
    if prompt is not None and _SYSTEM not in prompt:
        yield "It leaves system turns out: a system prompt changes nothing."


def _bos(chat_template: ChatTemplate) -> Iterator[str]:
    bos = chat_template.bos_token
    prompts = [
        prompt for conversation in CORE if (prompt := prompt_or_none(chat_template, conversation))
    ]
    if bos and any(prompt.startswith(bos * 2) for prompt in prompts):
        yield f"It writes the BOS token {bos!r} twice."
    if bos and len({prompt.startswith(bos) for prompt in prompts}) == 2:
        yield f"It writes the BOS token {bos!r} for some conversations only."


def _date(chat_template: ChatTemplate) -> Iterator[str]:
    tree = parse_chat_template(chat_template.source, chat_template.origin)
    if not any(name.name == "strftime_now" for name in tree.find_all(nodes.Name)):
        return
    prompt = prompt_or_none(chat_template, CORE[0]) or ""
    today = datetime.now()
    if any(today.strftime(form) in prompt for form in ("%d %b %Y", "%Y-%m-%d", "%d %B %Y")):
        yield "It writes today's date: the prompt is another one every day, as it was in training."
