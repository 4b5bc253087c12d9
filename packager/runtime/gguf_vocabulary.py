"""A GGUF's vocabulary and chat template, as llama.cpp has them, without its weights."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2

from packager.errors import ChatTemplateError, PromptRefusedError
from packager.runtime.embedded import load_llama

_KEY = "tokenizer.chat_template"
# Nothing is computed; a context is made all the same.
_CONTEXT = 64
_LONGEST_TOKEN_BYTES = 1 << 12


class GgufVocabulary:
    """What llama.cpp reads of a GGUF's tokenizer; a context manager, which frees it.

    Args:
        gguf: the file; its tensors need not be there.

    Raises:
        CorruptFileError: if llama.cpp cannot load it.
    """

    def __init__(self, gguf: Path) -> None:
        self._llama = load_llama(gguf, n_ctx=_CONTEXT, threads=None, vocab_only=True)
        self._gguf = gguf

    def __enter__(self) -> GgufVocabulary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._llama.close()

    @property
    def adds_bos(self) -> bool:
        """Whether a prompt is given a BOS token whatever it begins with."""
        return bool(self._llama.metadata.get("tokenizer.ggml.add_bos_token") == "true")

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own (Jinja)."""
        found = self._llama.metadata.get(_KEY)
        return None if found is None else str(found)

    def token(self, which: str) -> str:
        """The text of the `bos` or `eos` token; `""` where there is none."""
        number = self._llama.token_bos() if which == "bos" else self._llama.token_eos()
        if number < 0:
            return ""
        return str(self._llama.detokenize([number], special=True).decode("utf-8", "replace"))

    def tokenize(self, prompt: str) -> list[int]:
        """The ids of a prompt as a server makes them.

        A BOS at its beginning is taken off where one is added, and markers become their tokens
        (`add_special` and `parse_special`).
        """
        if self.adds_bos:
            prompt = prompt.removeprefix(self.token("bos"))
        return list(self._llama.tokenize(prompt.encode(), add_bos=True, special=True))

    def tokenize_text(self, text: str) -> list[int]:
        """The ids of a text in the middle of a prompt: nothing is added, no marker is one."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def text(self, ids: Sequence[int]) -> str:
        """What a server sends for ids, piece by piece; control tokens are not seen."""
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        # llama-cpp-python's own detokenize gives a token of 32 bytes at most.
        piece = ctypes.create_string_buffer(_LONGEST_TOKEN_BYTES)
        pieces = []
        for number in ids:
            size = llama_cpp.llama_token_to_piece(vocabulary, number, piece, len(piece), 0, False)
            pieces.append(piece.raw[: max(size, 0)])
        return b"".join(pieces).decode("utf-8", "replace")

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] = (),
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt that the embedded runtime makes with the GGUF's own chat template.

        Raises:
            PromptRefusedError: if the template refuses the conversation.
            ChatTemplateError: if there is none.
        """
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        metadata: Mapping[str, Any] = self._llama.metadata
        source = metadata.get(f"{_KEY}.tool_use") if tools else None
        source = source or self.chat_template
        if source is None:
            raise ChatTemplateError(
                f"{self._gguf} carries no chat template.",
                next_step="Package the model again with a chat template: `--template FILE`.",
            )
        try:
            formatter = Jinja2ChatFormatter(
                source, eos_token=self.token("eos"), bos_token=self.token("bos")
            )
            response = formatter(
                messages=list(messages), tools=list(tools) or None, **(variables or {})
            )
        # A template is a program: Jinja lets whatever Python raises in it pass.
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PromptRefusedError(str(error)) from error
        return str(response.prompt)
