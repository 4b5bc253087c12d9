"""Proving a prompt where it is rendered: offline, by the embedded runtime, by a daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from packager.errors import (
    ChatTemplateError,
    PromptDifferenceError,
    PromptRefusedError,
    UnsupportedError,
)
from packager.model.tokenize import load_tokenizer
from packager.package.prepare import Package
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Proof, Render, TokenizedBy, prove
from packager.prompt.conversation import BATTERY, Conversation, Message
from packager.prompt.go.families import prove_go
from packager.prompt.server import as_native_server, server_variables
from packager.runtime.daemon import Daemon
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.corpus import prove_vocabulary
from packager.verify.dataset import read_conversations


def conversations_with(own: Path | None) -> tuple[Conversation, ...]:
    """The battery, after the user's own conversations where there is a file of them."""
    return (*read_conversations(own), *BATTERY) if own else BATTERY


def prove_offline(
    chat_template: ChatTemplate,
    gguf_chat_template: ChatTemplate,
    ollama_template: str | None,
    conversations: Sequence[Conversation],
) -> Proof:
    """Compare with what a server is known to make of the conversations.

    Args:
        chat_template: the one of training.
        gguf_chat_template: the GGUF's own.
        ollama_template: the TEMPLATE (Go) that renders in its place; None for the GGUF's own.
        conversations: what is compared.
    """
    if ollama_template is not None:
        return prove_go(chat_template, ollama_template, conversations)
    return prove(chat_template, conversations, _native_renderer(gguf_chat_template), "offline")


def prove_embedded(
    chat_template: ChatTemplate,
    vocabulary: GgufVocabulary,
    conversations: Sequence[Conversation],
    tokenize: Callable[[str], list[int]] | None,
) -> Proof:
    """Compare with the embedded runtime, and the ids of its tokenizer with those of training.

    Args:
        chat_template: the one of training.
        vocabulary: the GGUF's.
        conversations: what is compared.
        tokenize: the tokenizer of training; None to compare no ids.
    """

    def render(tried: Conversation) -> str:
        if tried.is_begun:
            raise PromptRefusedError("the embedded runtime does not go on with begun answers")
        asked = {} if tried.thinking is None else {"enable_thinking": tried.thinking}
        return vocabulary.render(tried.messages, tried.tools, asked)

    tokenized_by = TokenizedBy(tokenize, vocabulary.tokenize) if tokenize else None
    return prove(chat_template, conversations, render, "embedded", tokenized_by)


def prove_built(
    package: Package, gguf: Path, conversations: Sequence[Conversation]
) -> tuple[Proof, Proof]:
    """Compare a GGUF that was built with the embedded runtime, and its vocabulary on a corpus."""
    tokenize = load_tokenizer(package.inputs.files)
    with GgufVocabulary(gguf) as vocabulary:
        embedded = prove_embedded(package.chat_template, vocabulary, conversations, tokenize)
        return embedded, prove_vocabulary(TokenizedBy(tokenize, vocabulary.tokenize_text))


def prove_on_daemon(
    chat_template: ChatTemplate,
    daemon: Daemon,
    name: str,
    conversations: Sequence[Conversation],
    system: str | None = None,
    *,
    is_by_template: bool = False,
) -> Proof:
    """Compare with what a daemon makes of the conversations for a registered model.

    Args:
        chat_template: the one of training.
        daemon: the daemon.
        name: the model.
        conversations: what is compared.
        system: the model's SYSTEM text, which the daemon puts before conversations without one.
        is_by_template: whether a TEMPLATE (Go) renders there.

    Raises:
        UnsupportedError: if the daemon is too old to tell.
    """
    plain = daemon_renderer(daemon, name)
    first: Message = {"role": "system", "content": system or ""}

    def render(tried: Conversation) -> str:
        if tried.messages[0] == first:
            return plain(replace(tried, messages=tried.messages[1:]))
        return plain(tried)

    return prove(
        chat_template,
        [_with_first(tried, first) for tried in conversations] if system else conversations,
        render if system else plain,
        daemon.host,
        is_by_template=is_by_template,
    )


def _with_first(tried: Conversation, first: Message) -> Conversation:
    if tried.messages[0]["role"] == "system":
        return tried
    return replace(tried, messages=(first, *tried.messages))


def daemon_renderer(daemon: Daemon, name: str) -> Render:
    """How a daemon renders conversations for a model.

    Raises:
        UnsupportedError: when called, if the daemon is too old to tell.
    """

    def render(tried: Conversation) -> str:
        prompt = daemon.render(name, tried.messages, tools=tried.tools, thinking=tried.thinking)
        if prompt is None:
            raise UnsupportedError(
                f"Ollama {daemon.version()} at {daemon.host} does not tell how it renders.",
                next_step="Update Ollama: newer ones tell (0.12 and later).",
            )
        return prompt

    return render


def require_proved(proof: Proof, what: str, next_step: str) -> None:
    """Refuse a prompt that is not the prompt of training.

    Raises:
        PromptDifferenceError: naming the conversations that differ.
    """
    failed = proof.failed
    if not failed:
        return
    if proof.level == "vocabulary":
        names = ", ".join(item.conversation.name for item in failed)
        raise PromptDifferenceError(
            f"{what}: the GGUF's vocabulary makes other token ids of {names} than in training.",
            next_step=next_step,
        )
    names = ", ".join(f"'{item.conversation.name}'" for item in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    if failed[0].outcome == "different":
        why = f"the prompt of {names}{more} is not that of training"
    else:
        why = f"the token ids of {names}{more} are not those of training"
    raise PromptDifferenceError(
        f"{what}: {why} ({proof.level}).",
        next_step=next_step,
    )


def _native_renderer(gguf_chat_template: ChatTemplate) -> Render:
    def render(tried: Conversation) -> str:
        tried = as_native_server(tried)
        begun = ""
        if tried.is_begun:
            begun = str(tried.messages[-1].get("content") or "")
            tried = replace(tried, messages=tried.messages[:-1])
        try:
            return gguf_chat_template.prompt(tried, server_variables()) + begun
        except ChatTemplateError as error:
            raise PromptRefusedError(error.message) from error

    return render
