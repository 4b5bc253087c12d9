"""A GGUF's vocabulary and chat template, as llama.cpp reads them, without its weights."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2

from packager.errors import ChatTemplateError, PromptRefusedError
from packager.runtime.embedded import PACKAGE_WITH_TEMPLATE, load_llama

_KEY = "tokenizer.chat_template"
# Nothing is computed, but llama-cpp-python always creates a context.
_CONTEXT = 64
_LONGEST_TOKEN_BYTES = 1 << 12


class GgufVocabulary:
    """A GGUF's tokenizer in llama.cpp; a context manager, which frees it.

    Args:
        gguf: the file; its tensors may be missing.

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
        """Whether every prompt gets a BOS token, whatever it begins with."""
        return bool(self._llama.metadata.get("tokenizer.ggml.add_bos_token") == "true")

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own chat template (Jinja); None if it has none."""
        source = self._llama.metadata.get(_KEY)
        return None if source is None else str(source)

    def token(self, which: str) -> str:
        """The text of the `bos` or `eos` token; `""` if there is none."""
        number = self._llama.token_bos() if which == "bos" else self._llama.token_eos()
        if number < 0:
            return ""
        return str(self._llama.detokenize([number], special=True).decode("utf-8", "replace"))

    def tokenize(self, prompt: str) -> list[int]:
        """The ids that a server makes of a prompt.

        A BOS at its beginning is removed if one will be added, and markers become their tokens
        (`add_special` and `parse_special`).
        """
        if self.adds_bos:
            prompt = prompt.removeprefix(self.token("bos"))
        return list(self._llama.tokenize(prompt.encode(), add_bos=True, special=True))

    def tokenize_text(self, text: str) -> list[int]:
        """The ids of a text inside a prompt: nothing is added, and markers are plain text."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def text(self, ids: Sequence[int]) -> str:
        """The text that a server sends for ids, piece by piece; control tokens send none."""
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        # llama-cpp-python's own `detokenize` cuts each token to 32 bytes.
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
        """The prompt that the embedded runtime renders with the GGUF's own chat template.

        Raises:
            PromptRefusedError: if the chat template refuses the conversation.
            ChatTemplateError: if there is no chat template.
        """
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        metadata: Mapping[str, Any] = self._llama.metadata
        source = metadata.get(f"{_KEY}.tool_use") if tools else None
        source = source or self.chat_template
        if source is None:
            raise ChatTemplateError(
                f"{self._gguf} contains no chat template.",
                next_step=PACKAGE_WITH_TEMPLATE,
            )
        try:
            formatter = Jinja2ChatFormatter(
                source, eos_token=self.token("eos"), bos_token=self.token("bos")
            )
            response = formatter(
                messages=list(messages), tools=list(tools) or None, **(variables or {})
            )
        # A chat template is a program, and Jinja passes on whatever Python raises in it.
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PromptRefusedError(str(error)) from error
        return str(response.prompt)
