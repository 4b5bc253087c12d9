"""Two renderings of each conversation: the training prompt, and the prompt of another renderer."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from packager.errors import PromptRefusedError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import Conversation
from packager.prompt.server import CHANGES, Change, server_variables, trimmed_forms

Outcome = Literal["equal", "known_difference", "different", "unsupported"]
Render = Callable[[Conversation], str]
Tokenize = Callable[[str], Sequence[int]]
# How many of a server's changes can explain a difference together.
_MAX_CHANGES = 4
_BEGUN = "the server opens a begun answer in its own way"
_SERVER_VARIABLES = "the server sets variables of its own for thinking and the date"
_UNTRIMMED = "the chat template trims messages, and the renderer does not"
_ESCAPED = "the server does not escape quotes as Python's Jinja does"


@dataclass(frozen=True)
class ComparedPrompt:
    """One conversation in both renderings.

    Attributes:
        conversation: what was rendered.
        outcome: `equal`; `known_difference` if every cause is known and cannot be avoided there;
            `different`; `unsupported` if the training chat template refuses the conversation.
        expected: the training prompt, without its BOS; None if it is refused.
        rendered: the other prompt, without BOS; None if the renderer refuses it.
        causes: why they differ, if that is known.
        has_same_ids: whether both tokenizers make the same ids of the training prompt; None if ids
            were not compared.
    """

    conversation: Conversation
    outcome: Outcome
    expected: str | None
    rendered: str | None
    causes: tuple[str, ...] = ()
    has_same_ids: bool | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it differs although every renderer can render the training prompt here."""
        if self.has_same_ids is False:
            return True
        return self.outcome == "different" and self.conversation.is_plain


@dataclass(frozen=True)
class Comparison:
    """The prompts of several conversations, compared.

    Attributes:
        level: where the prompts were rendered: `offline`, `embedded`, or a daemon's address.
        compared: one for each conversation, in their order.
    """

    level: str
    compared: tuple[ComparedPrompt, ...]

    @property
    def failed(self) -> tuple[ComparedPrompt, ...]:
        """Those whose prompts must equal the training prompts, and do not."""
        return tuple(item for item in self.compared if item.has_failed)

    def count(self, outcome: Outcome) -> int:
        """How many conversations have this outcome."""
        return sum(item.outcome == outcome for item in self.compared)

    @property
    def causes(self) -> dict[str, int]:
        """The causes of known differences, each with its number of conversations."""
        counts: dict[str, int] = {}
        for item in self.compared:
            for cause in item.causes if item.outcome == "known_difference" else ():
                counts[cause] = counts.get(cause, 0) + 1
        return counts


@dataclass(frozen=True)
class TokenizerPair:
    """Two functions from a whole training prompt, with its BOS as text, to token ids.

    Attributes:
        training: the training tokenizer.
        gguf: the tokenizer of the GGUF.
    """

    training: Tokenize
    gguf: Tokenize

    def has_same_ids(self, text: str) -> bool:
        """Whether both make the same ids of a text."""
        return list(self.training(text)) == list(self.gguf(text))


def compare(
    chat_template: ChatTemplate,
    conversations: Sequence[Conversation],
    render: Render,
    level: str,
    tokenizers: TokenizerPair | None = None,
    *,
    is_by_template: bool = False,
) -> Comparison:
    """Compare a renderer's prompts with the training prompts.

    Args:
        chat_template: the training chat template.
        conversations: what is rendered; without a choice of `thinking`, it is as in training.
        render: the renderer; it raises `PromptRefusedError` for a conversation that it refuses.
        level: where it renders.
        tokenizers: both tokenizers, to compare ids too.
        is_by_template: whether a TEMPLATE (Go) renders, which has limits of its own.
    """
    only_go = {change.cause for change in CHANGES if change.is_only_by_go} | {_UNTRIMMED}
    avoidable = {_SERVER_VARIABLES} | (set() if is_by_template else only_go)
    compared = (
        _compare_prompt(chat_template, conversation, render, tokenizers)
        for conversation in conversations
    )
    return Comparison(level, tuple(_without_excuses(item, avoidable) for item in compared))


def _without_excuses(item: ComparedPrompt, avoidable: set[str]) -> ComparedPrompt:
    """A known cause does not excuse a difference in plain text that could have been avoided."""
    is_excused = item.outcome == "known_difference"
    if is_excused and item.conversation.is_plain and avoidable & set(item.causes):
        return replace(item, outcome="different")
    return item


def _compare_prompt(
    chat_template: ChatTemplate,
    conversation: Conversation,
    render: Render,
    tokenizers: TokenizerPair | None,
) -> ComparedPrompt:
    with_bos = chat_template.prompt_or_none(conversation)
    if with_bos is None:
        return ComparedPrompt(conversation, "unsupported", None, None)
    expected = _without_bos(chat_template, with_bos)
    same_ids = tokenizers.has_same_ids(with_bos) if tokenizers is not None else None
    outcome: Outcome
    try:
        rendered = _without_bos(chat_template, render(conversation))
    except PromptRefusedError as error:
        outcome = "different" if conversation.is_plain else "known_difference"
        return ComparedPrompt(conversation, outcome, expected, None, (error.message,), same_ids)
    if rendered == expected:
        return ComparedPrompt(conversation, "equal", expected, rendered, (), same_ids)
    causes = _known_causes(chat_template, conversation, rendered)
    if not causes and _is_untrimmed(chat_template, conversation, expected, render):
        causes = (_UNTRIMMED,)
    outcome = "known_difference" if causes else "different"
    return ComparedPrompt(conversation, outcome, expected, rendered, causes, same_ids)


def _is_untrimmed(
    chat_template: ChatTemplate, conversation: Conversation, expected: str, render: Render
) -> bool:
    """Whether the renderer would render the training prompt from trimmed messages."""
    forms = (form for form in trimmed_forms(conversation) if form != conversation)
    return any(_without_bos(chat_template, render(form)) == expected for form in forms)


def _without_bos(chat_template: ChatTemplate, prompt: str) -> str:
    return prompt.removeprefix(chat_template.bos_token or "")


def _known_causes(
    chat_template: ChatTemplate, conversation: Conversation, rendered: str
) -> tuple[str, ...]:
    """The fewest known changes that turn the training prompt into the rendered prompt."""
    for changes in _change_sets(conversation):
        changed = conversation
        for change in changes:
            changed = change.apply(changed)
        causes = tuple(change.cause for change in changes)
        for variant in _variants(chat_template, changed, rendered):
            if variant.prompt == rendered:
                return (*causes, *variant.causes)
    return ()


def _change_sets(conversation: Conversation) -> Iterator[tuple[Change, ...]]:
    # Compared as text, because the order of a schema's keys matters.
    relevant = [
        change for change in CHANGES if repr(change.apply(conversation)) != repr(conversation)
    ]
    for number in range(min(len(relevant), _MAX_CHANGES) + 1):
        yield from itertools.combinations(relevant, number)


@dataclass(frozen=True)
class _Variant:
    """A prompt, and the causes that made it differ from the training prompt."""

    prompt: str | None
    causes: tuple[str, ...] = ()


def _variants(
    chat_template: ChatTemplate, conversation: Conversation, rendered: str
) -> Iterator[_Variant]:
    """The training prompt of a conversation, and what a server is known to make of it."""
    with_bos = chat_template.prompt_or_none(conversation)
    prompt = None if with_bos is None else _without_bos(chat_template, with_bos)
    yield _Variant(prompt)
    on_server = chat_template.prompt_or_none(conversation, server_variables())
    if on_server is not None and on_server != prompt:
        yield _Variant(_without_bos(chat_template, on_server), (_SERVER_VARIABLES,))
    if prompt and "&#34;" in prompt:
        yield _Variant(html.unescape(prompt), (_ESCAPED,))
    if conversation.is_begun and rendered.endswith(conversation.begun_answer.rstrip()):
        yield _Variant(rendered, (_BEGUN,))
