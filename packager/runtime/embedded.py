"""A GGUF that answers in this process, through llama-cpp-python: no daemon, nothing installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packager.errors import ChatTemplateError, CorruptFileError, FtpackError, UnsupportedError
from packager.runtime.shown import ParameterValue

# What Ollama 0.32 samples with where a Modelfile says nothing (api/types.go, DefaultOptions), so
# that a model answers alike here and there.
_SAMPLING: Mapping[str, ParameterValue] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Given by arguments of their own, or to the daemon only.
_ELSEWHERE = frozenset({"num_ctx", "num_predict", "num_thread", "stop"})
_CHAT_TEMPLATE_KEY = "tokenizer.chat_template"


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


def stream_chat(
    gguf: Path,
    messages: Sequence[Mapping[str, str]],
    *,
    stops: Sequence[str],
    max_tokens: int,
    n_ctx: int,
    threads: int | None,
    parameters: Mapping[str, ParameterValue],
) -> ChatStream:
    """Let a GGUF answer a conversation, with the chat template that it carries.

    Args:
        gguf: the model.
        messages: the conversation, each message with `role` and `content`.
        stops: texts that end the answer, beside the model's own end-of-generation tokens.
        max_tokens: the length at which an answer is cut.
        n_ctx: the context's length in tokens, prompt included; 0 for the model's own.
        threads: the number of threads, `None` for llama.cpp's choice.
        parameters: sampling parameters by Ollama's names.

    Raises:
        CorruptFileError: if llama.cpp cannot load the file.
        ChatTemplateError: if it has no chat template, or one that refuses the conversation.
        UnsupportedError: if a parameter has no counterpart here.
        FtpackError: if the prompt does not fit into the context.
    """
    sampling = _sampling(parameters)
    llama = _load(gguf, n_ctx=n_ctx, threads=threads)
    if _CHAT_TEMPLATE_KEY not in llama.metadata:
        # llama-cpp-python would take Llama 2's format, whatever the model was trained with.
        raise ChatTemplateError(
            f"{gguf} carries no chat template, so it cannot be asked in turns.",
            next_step="Package the model again with a chat template: `--template FILE`.",
        )
    try:
        chunks = llama.create_chat_completion(
            messages=list(messages),
            stop=list(stops),
            max_tokens=max_tokens,
            stream=True,
            **sampling,
        )
    except Exception as error:
        raise _chat_error(gguf, error) from error
    return ChatStream(_guarded(chunks, gguf))


def _sampling(parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
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


def _load(gguf: Path, *, n_ctx: int, threads: int | None) -> Any:
    with _quiet_native_log():
        import llama_cpp

        try:
            return llama_cpp.Llama(
                str(gguf),
                n_ctx=n_ctx,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=-1,
                # Named, so that it is not guessed: some templates are mapped to formats of
                # llama-cpp-python's own.
                chat_format="chat_template.default",
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise CorruptFileError(
                f"llama.cpp cannot load {gguf}: {error}",
                next_step="Check the file against its SHA256SUMS, or package the model again; "
                "`--num-ctx` may ask for more memory than there is.",
            ) from error


def _guarded(chunks: Iterator[Mapping[str, Any]], gguf: Path) -> Iterator[Mapping[str, Any]]:
    try:
        yield from chunks
    except (ValueError, RuntimeError) as error:
        raise _chat_error(gguf, error) from error


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
