"""Compare prompts where they are rendered: offline, by the embedded runtime, by a daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packager.errors import (
    ChatTemplateError,
    PromptDifferenceError,
    PromptRefusedError,
    UnsupportedError,
    listed,
)
from packager.model.model_file import ModelFile
from packager.model.tokenizer import load_tokenizer
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Comparison, Render, TokenizerPair, compare
from packager.prompt.conversation import Conversation, Message
from packager.prompt.go.families import compare_go
from packager.prompt.server import as_native_server, server_variables
from packager.runtime.daemon import Daemon
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.corpus import VOCABULARY, compare_vocabulary


@dataclass(frozen=True)
class GgufComparison:
    """The comparisons of a GGUF on the embedded runtime.

    Attributes:
        prompts: of its prompts.
        vocabulary: of its token ids on a corpus.
    """

    prompts: Comparison
    vocabulary: Comparison


def compare_offline(
    chat_template: ChatTemplate,
    gguf_chat_template: ChatTemplate,
    ollama_template: str | None,
    conversations: Sequence[Conversation],
) -> Comparison:
    """Compare the prompts that a server is expected to render with the training prompts.

    Args:
        chat_template: the training chat template.
        gguf_chat_template: the GGUF's own chat template.
        ollama_template: the TEMPLATE (Go) that renders instead; None for the GGUF's own.
        conversations: those whose prompts are compared.
    """
    if ollama_template is not None:
        return compare_go(chat_template, ollama_template, conversations)
    return compare(chat_template, conversations, _native_renderer(gguf_chat_template), "offline")


def compare_embedded(
    chat_template: ChatTemplate,
    vocabulary: GgufVocabulary,
    conversations: Sequence[Conversation],
    tokenize: Callable[[str], list[int]] | None,
) -> Comparison:
    """Compare the prompts and token ids of the embedded runtime with those of training.

    Args:
        chat_template: the training chat template.
        vocabulary: the GGUF's vocabulary and chat template.
        conversations: those whose prompts are compared.
        tokenize: the training tokenizer; None to compare no ids.
    """

    def render(conversation: Conversation) -> str:
        if conversation.is_begun:
            raise PromptRefusedError("the embedded runtime does not continue begun answers")
        variables = (
            {} if conversation.thinking is None else {"enable_thinking": conversation.thinking}
        )
        return vocabulary.render(conversation.messages, conversation.tools, variables)

    tokenizers = TokenizerPair(tokenize, vocabulary.tokenize) if tokenize else None
    return compare(chat_template, conversations, render, "embedded", tokenizers)


def compare_gguf(
    chat_template: ChatTemplate,
    files: Mapping[str, ModelFile],
    gguf: Path,
    conversations: Sequence[Conversation],
    scratch: Path,
) -> GgufComparison:
    """Compare a GGUF on the embedded runtime: its prompts, and its vocabulary on a corpus.

    Args:
        chat_template: the training chat template.
        files: the files of the training tokenizer, by name.
        gguf: the file; its weights are not read.
        conversations: those whose prompts are compared.
        scratch: the run's temporary folder.
    """
    tokenize = load_tokenizer(files, scratch)
    with GgufVocabulary(gguf) as vocabulary:
        prompts = compare_embedded(chat_template, vocabulary, conversations, tokenize)
        return GgufComparison(
            prompts, compare_vocabulary(TokenizerPair(tokenize, vocabulary.tokenize_text))
        )


def compare_on_daemon(
    chat_template: ChatTemplate,
    daemon: Daemon,
    name: str,
    conversations: Sequence[Conversation],
    system: str | None = None,
    *,
    is_by_template: bool = False,
) -> Comparison:
    """Compare the prompts that a daemon renders for a registered model with the training prompts.

    Args:
        chat_template: the training chat template.
        daemon: the daemon.
        name: the model.
        conversations: those whose prompts are compared.
        system: the model's SYSTEM text; the daemon adds it to conversations without a system turn.
        is_by_template: whether a TEMPLATE (Go) renders there.

    Raises:
        UnsupportedError: if the daemon is too old to report its prompts.
    """
    plain = daemon_renderer(daemon, name)
    first: Message = {"role": "system", "content": system or ""}

    def render(conversation: Conversation) -> str:
        if conversation.messages[0] == first:
            return plain(replace(conversation, messages=conversation.messages[1:]))
        return plain(conversation)

    return compare(
        chat_template,
        [_with_first(conversation, first) for conversation in conversations]
        if system
        else conversations,
        render if system else plain,
        daemon.host,
        is_by_template=is_by_template,
    )


def _with_first(conversation: Conversation, first: Message) -> Conversation:
    if conversation.messages[0]["role"] == "system":
        return conversation
    return replace(conversation, messages=(first, *conversation.messages))


def daemon_renderer(daemon: Daemon, name: str) -> Render:
    """A function that gives the prompt that a daemon renders for a model.

    The function raises `PromptRefusedError` if the daemon refuses a conversation, and
    `UnsupportedError` if the daemon is too old to report its prompts.
    """

    def render(conversation: Conversation) -> str:
        prompt = daemon.render(
            name, conversation.messages, tools=conversation.tools, thinking=conversation.thinking
        )
        if prompt is None:
            raise UnsupportedError(
                f"Ollama {daemon.version()} at {daemon.host} does not report its prompts.",
                next_step="Update Ollama to 0.12 or newer.",
            )
        return prompt

    return render


def require_equal(comparison: Comparison, what: str, next_step: str) -> None:
    """Refuse a prompt that differs from the training prompt.

    Args:
        comparison: the prompts, compared.
        what: what the error begins with: the model, and its state.
        next_step: the error's next step.

    Raises:
        PromptDifferenceError: naming the conversations that differ.
    """
    failed = comparison.failed
    if not failed:
        return
    if comparison.level == VOCABULARY:
        names = ", ".join(item.conversation.name for item in failed)
        raise PromptDifferenceError(
            f"{what}: the GGUF's vocabulary makes other token ids of {names} than training.",
            next_step=next_step,
        )
    names = listed([f"'{item.conversation.name}'" for item in failed], limit=3)
    where = f"({comparison.level})"
    if failed[0].outcome == "different":
        reason = f"the prompts of {names} differ from the training prompts {where}"
    else:
        reason = f"the token ids of {names} differ from those in training {where}"
    raise PromptDifferenceError(f"{what}: {reason}.", next_step=next_step)


def _native_renderer(gguf_chat_template: ChatTemplate) -> Render:
    def render(conversation: Conversation) -> str:
        conversation = as_native_server(conversation)
        begun = conversation.begun_answer
        if conversation.is_begun:
            conversation = replace(conversation, messages=conversation.messages[:-1])
        try:
            return gguf_chat_template.prompt(conversation, server_variables()) + begun
        except ChatTemplateError as error:
            raise PromptRefusedError(error.message) from error

    return render
