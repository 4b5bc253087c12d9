"""A GGUF that answers in this process, through llama-cpp-python: no daemon, nothing installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
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
from packager.scalar import Scalar

# What Ollama 0.32 samples with where a Modelfile says nothing (api/types.go, DefaultOptions), so
# that a model answers alike here and there.
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
# Given by arguments of their own, or about where a daemon computes, not what.
_ELSEWHERE = frozenset(
    {"num_ctx", "num_predict", "num_thread", "stop"}
    | {"main_gpu", "num_batch", "num_gpu", "num_keep", "use_mmap"}
)
_CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
# What llama-cpp-python raises where a file, a template or a conversation is at fault.
_FAULTS = (ValueError, RuntimeError, TypeError, jinja2.TemplateError)
_GGML_LOG_LEVEL_ERROR = 4


class ChatStream(Iterator[str]):
    """The pieces of an answer as they are made.

    Attributes:
        finish_reason: `stop` where the answer ended by itself, `length` where it was cut at
            `max_tokens` or at the end of the context; `None` until it has ended.
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
        n_ctx: the context's length in tokens, prompt and answer; 0 for the model's own.
        threads: the number of threads, `None` for llama.cpp's choice.

    Raises:
        SourceNotFoundError: if there is no such file.
        CorruptFileError: if llama.cpp cannot load it.
        ChatTemplateError: if it has no chat template, or a broken one.
    """

    def __init__(self, gguf: Path, *, n_ctx: int, threads: int | None) -> None:
        self._gguf = gguf
        self._llama = load_llama(gguf, n_ctx=n_ctx, threads=threads)
        if not self._llama.metadata.get(_CHAT_TEMPLATE_KEY):
            # llama-cpp-python would take Llama 2's format, whatever the model was trained with.
            self.close()
            raise ChatTemplateError(
                f"{gguf} carries no chat template, so it cannot be asked in turns.",
                next_step="Package the model again with a chat template: `--template FILE`.",
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
        """Answer a conversation, with the chat template that the GGUF carries.

        Args:
            messages: the conversation, each message with `role` and `content`.
            stops: texts that end the answer, beside the model's end-of-generation tokens.
            max_tokens: the length at which an answer is cut.
            parameters: sampling parameters by Ollama's names.

        Raises:
            ChatTemplateError: if the chat template refuses the conversation.
            UnsupportedError: if a parameter has no counterpart here.
            FtpackError: if the prompt does not fit into the context.
        """
        sampling = _sampling(parameters)
        return ChatStream(
            self._chunks(
                messages=list(messages),
                stop=list(stops),
                max_tokens=max_tokens,
                stream=True,
                **sampling,
            )
        )

    def _chunks(self, **request: object) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self._llama.create_chat_completion(**request)
        except _FAULTS as error:
            raise _chat_error(self._gguf, error) from error


def stream_chat(
    gguf: Path,
    messages: Sequence[Mapping[str, str]],
    *,
    stops: Sequence[str],
    max_tokens: int,
    n_ctx: int,
    threads: int | None,
    parameters: Mapping[str, Scalar],
) -> ChatStream:
    """Load a GGUF for one answer; arguments and errors as in `EmbeddedModel` and its `stream`."""
    model = EmbeddedModel(gguf, n_ctx=n_ctx, threads=threads)
    return model.stream(messages, stops=stops, max_tokens=max_tokens, parameters=parameters)


def _sampling(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    known = {*_SAMPLING, *_ELSEWHERE, "seed"}
    for name in parameters:
        if name not in known:
            raise UnsupportedError(
                f"The embedded runtime has no parameter {name!r}; it has "
                f"{', '.join(sorted(known - _ELSEWHERE))}.",
                next_step="Leave the parameter out, or register the model with Ollama.",
            )
    chosen = {name: value for name, value in parameters.items() if name not in _ELSEWHERE}
    return {**_SAMPLING, **chosen}


def load_llama(gguf: Path, *, n_ctx: int, threads: int | None, vocab_only: bool = False) -> Any:
    """llama-cpp-python's model of a GGUF; `vocab_only` leaves its weights out.

    Raises:
        SourceNotFoundError: if there is no such file.
        CorruptFileError: if llama.cpp cannot load it.
        ChatTemplateError: if its chat template is broken.
    """
    if not gguf.is_file():
        raise SourceNotFoundError(
            f"There is no file {gguf}.",
            next_step="Give a GGUF or a folder that `ftpack gguf` made.",
        )
    import llama_cpp

    errors, callback = _native_log()
    errors.clear()
    llama_cpp.llama_log_set(callback, None)
    try:
        return llama_cpp.Llama(
            str(gguf),
            n_ctx=n_ctx,
            vocab_only=vocab_only,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=-1,
            # Named, so that it is not guessed: some templates are mapped to formats of
            # llama-cpp-python's own.
            chat_format="chat_template.default",
            verbose=False,
        )
    except jinja2.TemplateError as error:
        raise ChatTemplateError(
            f"The chat template of {gguf} cannot be read: {error}",
            next_step="Package the model with another chat template: `--template FILE`.",
        ) from error
    except _FAULTS as error:
        reason = "; ".join(errors[:3]) or str(error)
        raise CorruptFileError(
            f"llama.cpp cannot load {gguf}: {reason}",
            next_step="Compare the file with its SHA256SUMS, or package the model again.",
        ) from error


@cache
def _native_log() -> tuple[list[str], Any]:
    """What llama.cpp says went wrong, and the function that it says everything to.

    Cached: the library keeps the function for as long as the process lives, and would print
    without one.
    """
    import llama_cpp

    errors: list[str] = []

    def keep(level: int, text: bytes, _user_data: object) -> None:
        if level == _GGML_LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    return errors, llama_cpp.llama_log_callback(keep)


def _chat_error(gguf: Path, error: Exception) -> FtpackError:
    if "exceed context window" in str(error):
        return FtpackError(
            f"The conversation does not fit: {error}.",
            next_step="Give a longer context, or a shorter prompt.",
        )
    return ChatTemplateError(
        f"The chat template of {gguf} refuses the conversation: {error}",
        next_step="Leave out the system text, or package the model with another `--template`.",
    )
