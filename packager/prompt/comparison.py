"""The comparison that a prompt is the prompt of training: two renderings of each conversation."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from packager.errors import PromptRefusedError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import Conversation
from packager.prompt.native import prompt_or_none
from packager.prompt.server import CHANGES, Change, server_variables, trimmed_forms

Outcome = Literal["equal", "known_difference", "different", "unsupported"]
Render = Callable[[Conversation], str]
Tokenize = Callable[[str], Sequence[int]]
# How many of a server's changes are conversation together as an explanation.
_MOST_CHANGES = 4
_BEGUN = "the server opens a begun answer in its own way"
_TOLD = "the server sets variables of its own for thinking and the date"
_UNTRIMMED = "the chat template trims messages, and the renderer does not"
_ESCAPED = "the server does not escape quotes as Python's Jinja does"


@dataclass(frozen=True)
class ComparedPrompt:
    """One conversation in both renderings.

    Attributes:
        conversation: what was rendered.
        outcome: `equal`; `declared` where they differ for known causes alone which cannot be
            mended there; `different`; `not taken` where the chat template of training refuses it.
        expected: the prompt of training, without its BOS; None where it is refused.
        rendered: the prompt to be proved, without BOS; None where the renderer refuses it.
        causes: why they differ, where that is known.
        has_same_ids: whether both tokenizers make the same ids of the prompt of training; None
            where that was not asked.
    """

    conversation: Conversation
    outcome: Outcome
    expected: str | None
    rendered: str | None
    causes: tuple[str, ...] = ()
    has_same_ids: bool | None = None

    @property
    def has_failed(self) -> bool:
        """Whether what every route has to render as in training is rendered otherwise."""
        if self.has_same_ids is False:
            return True
        return self.outcome == "different" and self.conversation.kind in ("core", "own")


@dataclass(frozen=True)
class Comparison:
    """A battery of conversations, compared.

    Attributes:
        level: where the prompts were rendered: `offline`, `embedded`, or a daemon's address.
        compared: the conversations.
    """

    level: str
    compared: tuple[ComparedPrompt, ...]

    @property
    def failed(self) -> tuple[ComparedPrompt, ...]:
        """Those that have to be rendered as in training, and are not."""
        return tuple(item for item in self.compared if item.has_failed)

    def count(self, outcome: Outcome) -> int:
        """How many ended so."""
        return sum(item.outcome == outcome for item in self.compared)

    @property
    def causes(self) -> dict[str, int]:
        """The causes of declared differences, and in how many conversations each has a part."""
        found: dict[str, int] = {}
        for item in self.compared:
            for cause in item.causes if item.outcome == "known_difference" else ():
                found[cause] = found.get(cause, 0) + 1
        return found


@dataclass(frozen=True)
class TokenizedBy:
    """From a whole prompt of training, its BOS in it as text, to ids: in training, and here."""

    trained: Tokenize
    packaged: Tokenize


def compare(
    chat_template: ChatTemplate,
    conversations: Sequence[Conversation],
    render: Render,
    level: str,
    tokenized_by: TokenizedBy | None = None,
    *,
    is_by_template: bool = False,
) -> Comparison:
    """Compare a renderer with the chat template of training.

    Args:
        chat_template: the one of training.
        conversations: what is compared; `thinking` in them as in training.
        render: the renderer; it raises `PromptRefusedError` for what it does not take.
        level: where it renders.
        tokenized_by: both tokenizers, to compare ids too.
        is_by_template: whether a TEMPLATE (Go) renders, which has limits of its own.
    """
    by_templates = {change.cause for change in CHANGES if change.is_by_templates} | {_UNTRIMMED}
    avoidable = {_TOLD} | (set() if is_by_template else by_templates)
    compared = (
        _compare(chat_template, conversation, render, tokenized_by)
        for conversation in conversations
    )
    return Comparison(level, tuple(_without_excuses(item, avoidable) for item in compared))


def _without_excuses(item: ComparedPrompt, avoidable: set[str]) -> ComparedPrompt:
    """A difference in plain text that need not be is one, though its cause is known."""
    is_plain = item.conversation.kind in ("core", "own")
    if item.outcome == "known_difference" and is_plain and avoidable & set(item.causes):
        return replace(item, outcome="different")
    return item


def _compare(
    chat_template: ChatTemplate,
    conversation: Conversation,
    render: Render,
    tokenized_by: TokenizedBy | None,
) -> ComparedPrompt:
    whole = prompt_or_none(chat_template, conversation)
    if whole is None:
        return ComparedPrompt(conversation, "unsupported", None, None)
    expected = _without_bos(chat_template, whole)
    same_ids = None
    outcome: Outcome
    if tokenized_by is not None:
        same_ids = list(tokenized_by.trained(whole)) == list(tokenized_by.packaged(whole))
    try:
        rendered = _without_bos(chat_template, render(conversation))
    except PromptRefusedError as error:
        is_known = conversation.kind in ("tools", "thinking", "prefill")
        outcome = "known_difference" if is_known else "different"
        return ComparedPrompt(conversation, outcome, expected, None, (error.message,), same_ids)
    if rendered == expected:
        return ComparedPrompt(conversation, "equal", expected, rendered, (), same_ids)
    causes = _explanation(chat_template, conversation, rendered)
    if not causes and _is_untrimmed(chat_template, conversation, expected, render):
        causes = (_UNTRIMMED,)
    return ComparedPrompt(
        conversation,
        "known_difference" if causes else "different",
        expected,
        rendered,
        causes,
        same_ids,
    )


def _is_untrimmed(
    chat_template: ChatTemplate, conversation: Conversation, expected: str, render: Render
) -> bool:
    """Whether the renderer would make the prompt of training if messages were trimmed for it."""
    forms = (form for form in trimmed_forms(conversation) if form != conversation)
    return any(_without_bos(chat_template, render(form)) == expected for form in forms)


def _trained_prompt(chat_template: ChatTemplate, conversation: Conversation) -> str | None:
    prompt = prompt_or_none(chat_template, conversation)
    return None if prompt is None else _without_bos(chat_template, prompt)


def _without_bos(chat_template: ChatTemplate, prompt: str) -> str:
    return prompt.removeprefix(chat_template.bos_token or "")


def _explanation(
    chat_template: ChatTemplate, conversation: Conversation, rendered: str
) -> tuple[str, ...]:
    """The fewest known changes that make the prompt of training what was rendered."""
    for changes in _change_sets(conversation):
        changed = conversation
        for change in changes:
            changed = change.apply(changed)
        causes = tuple(change.cause for change in changes)
        for prompt, more in _prompts(chat_template, changed, rendered):
            if prompt == rendered:
                return (*causes, *more)
    return ()


def _change_sets(conversation: Conversation) -> Iterator[tuple[Change, ...]]:
    # ComparedPrompt as text: the order of a schema's keys counts.
    changing = [
        change for change in CHANGES if repr(change.apply(conversation)) != repr(conversation)
    ]
    for number in range(min(len(changing), _MOST_CHANGES) + 1):
        yield from itertools.combinations(changing, number)


def _prompts(
    chat_template: ChatTemplate, conversation: Conversation, rendered: str
) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    """What training made of the conversation, and what is known to be made of that."""
    prompt = _trained_prompt(chat_template, conversation)
    yield prompt, ()
    told = prompt_or_none(chat_template, conversation, server_variables())
    if told is not None and told != prompt:
        yield _without_bos(chat_template, told), (_TOLD,)
    if prompt and "&#34;" in prompt:
        yield html.unescape(prompt), (_ESCAPED,)
    if conversation.is_begun and rendered.endswith(
        str(conversation.messages[-1].get("content") or "").rstrip()
    ):
        yield rendered, (_BEGUN,)
