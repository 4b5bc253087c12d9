"""A GGUF that answers in this process, through llama-cpp-python, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from packager.errors import (
    ChatTemplateError,
    CorruptFileError,
    FtpackError,
    SourceNotFoundError,
    UnsupportedError,
)
from packager.runtime.llama_log import collect_log
from packager.scalar import Scalar

# Ollama 0.32's defaults if a Modelfile does not set them (api/types.go, DefaultOptions), so that a
# model answers alike here and there.
_SAMPLING: Mapping[str, Scalar] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Separate arguments here, or settings of where and how fast a daemon computes.
_ELSEWHERE = frozenset(
    {"num_ctx", "num_predict", "num_thread", "stop"}
    | {"main_gpu", "num_batch", "num_gpu", "num_keep", "use_mmap"}
)
_CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
# What llama-cpp-python raises for a faulty file, chat template or conversation.
_FAULTS = (ValueError, RuntimeError, TypeError, jinja2.TemplateError)
PACKAGE_WITH_TEMPLATE = "Package the model again with a chat template: `--template FILE`."


class ChatStream(Iterator[str]):
    """The pieces of an answer, as the model generates them.

    Attributes:
        finish_reason: `stop` if the answer ended by itself, `length` if it was cut at `max_tokens`
            or at the end of the context; None until it has ended.
    """

    def __init__(self, chunks: Iterator[Mapping[str, Any]]) -> None:
        self._chunks = chunks
        self.finish_reason: str | None = None

    def __next__(self) -> str:
        for chunk in self._chunks:
            choice = chunk["choices"][0]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            if text := choice["delta"].get("content"):
                return str(text)
        raise StopIteration


class EmbeddedModel:
    """A loaded GGUF; a context manager, which frees it.

    Args:
        gguf: the model.
        n_ctx: the context in tokens, for prompt and answer; 0 for the model's own.
        threads: the number of threads; None for llama.cpp's default.

    Raises:
        SourceNotFoundError: if there is no such file.
        CorruptFileError: if llama.cpp cannot load it.
        ChatTemplateError: if it has no chat template, or an invalid one.
    """

    def __init__(self, gguf: Path, *, n_ctx: int, threads: int | None) -> None:
        self._gguf = gguf
        self._llama = load_llama(gguf, n_ctx=n_ctx, threads=threads)
        if not self._llama.metadata.get(_CHAT_TEMPLATE_KEY):
            # llama-cpp-python would use Llama 2's format, whatever the model was trained with.
            self.close()
            raise ChatTemplateError(
                f"{gguf} contains no chat template, so it cannot chat.",
                next_step=PACKAGE_WITH_TEMPLATE,
            )

    def __enter__(self) -> EmbeddedModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._llama.close()

    def stream(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        stops: Sequence[str],
        max_tokens: int,
        parameters: Mapping[str, Scalar],
    ) -> ChatStream:
        """Answer a conversation, rendered by the GGUF's own chat template.

        Args:
            messages: the conversation, each message with `role` and `content`.
            stops: texts that end the answer, besides the model's end-of-generation tokens.
            max_tokens: the length at which the answer is cut.
            parameters: sampling parameters under Ollama's names.

        Raises:
            ChatTemplateError: if the chat template refuses the conversation.
            UnsupportedError: if llama-cpp-python has no such parameter.
            FtpackError: if the prompt exceeds the context.
        """
        request = {
            "messages": list(messages),
            "stop": list(stops),
            "max_tokens": max_tokens,
            "stream": True,
            **_sampling(parameters),
        }
        return ChatStream(self._chunks(request))

    def _chunks(self, request: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self._llama.create_chat_completion(**request)
        except _FAULTS as error:
            raise _chat_error(self._gguf, error) from error


def _sampling(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    known = {*_SAMPLING, *_ELSEWHERE, "seed"}
    for name in parameters:
        if name not in known:
            raise UnsupportedError(
                f"The embedded runtime has no parameter {name!r}; it has "
                f"{', '.join(sorted(known - _ELSEWHERE))}.",
                next_step="Omit the parameter, or register the model with Ollama.",
            )
    chosen = {name: value for name, value in parameters.items() if name not in _ELSEWHERE}
    return {**_SAMPLING, **chosen}


def load_llama(gguf: Path, *, n_ctx: int, threads: int | None, vocab_only: bool = False) -> Any:
    """llama-cpp-python's model of a GGUF; with `vocab_only`, without its weights.

    Raises:
        SourceNotFoundError: if there is no such file.
        CorruptFileError: if llama.cpp cannot load it.
        ChatTemplateError: if its chat template is not valid Jinja.
    """
    if not gguf.is_file():
        raise SourceNotFoundError(
            f"There is no file {gguf}.",
            next_step="Name a GGUF, or a folder that `ftpack gguf` made.",
        )
    import llama_cpp

    try:
        with collect_log() as log:
            return llama_cpp.Llama(
                str(gguf),
                n_ctx=n_ctx,
                vocab_only=vocab_only,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=-1,
                # Otherwise llama-cpp-python guesses, and maps some chat templates to its own
                # formats.
                chat_format="chat_template.default",
                verbose=False,
            )
    except jinja2.TemplateError as error:
        raise ChatTemplateError(
            f"The chat template of {gguf} is not valid Jinja: {error}",
            next_step="Package the model with another chat template: `--template FILE`.",
        ) from error
    except _FAULTS as error:
        reason = "; ".join(log.errors[:3]) or str(error)
        raise CorruptFileError(
            f"llama.cpp cannot load {gguf}: {reason}",
            next_step="Compare the file with its SHA256SUMS, or package the model again.",
        ) from error


def _chat_error(gguf: Path, error: Exception) -> FtpackError:
    if "exceed context window" in str(error):
        return FtpackError(
            f"The conversation exceeds the context: {error}.",
            next_step="Use a longer context (--param num_ctx=N) or a shorter prompt.",
        )
    return ChatTemplateError(
        f"The chat template of {gguf} refuses the conversation: {error}",
        next_step="Omit the system prompt, or package the model with another `--template`.",
    )
