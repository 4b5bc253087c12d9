"""A chat with a bundle or a GGUF on the embedded runtime, with its history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from packager.bundle.bundle import read_bundle
from packager.bundle.manifest import Manifest
from packager.errors import NotAModelError, SourceNotFoundError, UsageError
from packager.runtime.embedded import EmbeddedModel

# The context of a chat whose model asks for none, in tokens.
_CONTEXT = 4096
# llama.cpp counts in 32 bits; what is beyond would be taken for another number.
_LONGEST_CONTEXT = (1 << 31) - 1


class Chat:
    """Turns with one model; what was said is part of each prompt.

    Args:
        model: the loaded model.
        system: a system prompt.
        stops: what ends an answer, beside the model's own end-of-generation tokens.
        max_tokens: the longest answer.
        parameters: sampling parameters by Ollama's names.
    """

    def __init__(
        self,
        model: EmbeddedModel,
        system: str | None,
        stops: tuple[str, ...],
        max_tokens: int,
        parameters: Mapping[str, int | float | str | bool],
    ) -> None:
        self._model = model
        self._stops = stops
        self._max_tokens = max_tokens
        self._parameters = parameters
        self._messages: list[dict[str, str]] = []
        if system:
            self._messages.append({"role": "system", "content": system})

    def answer(self, prompt: str) -> Iterator[str]:
        """The answer to one more user turn, piece by piece."""
        self._messages.append({"role": "user", "content": prompt})
        pieces = []
        for piece in self._model.stream(
            self._messages,
            stops=self._stops,
            max_tokens=self._max_tokens,
            parameters=self._parameters,
        ):
            pieces.append(piece)
            yield piece
        self._messages.append({"role": "assistant", "content": "".join(pieces)})


def open_chat(
    path: Path,
    quant: str | None,
    system: str | None,
    max_tokens: int,
    threads: int,
    parameters: Mapping[str, int | float | str | bool],
) -> Chat:
    """Load a bundle's GGUF (its first, or the one of `quant`), or a GGUF by its path.

    Raises:
        SourceNotFoundError: if there is no such file, or no such quant in the bundle.
    """
    gguf, manifest = _find_gguf(path, quant)
    settings = dict(manifest.prompt.parameters) if manifest else {}
    settings |= parameters
    stops = manifest.prompt.stops if manifest else ()
    own_system = manifest.prompt.system if manifest else None
    context = settings.get("num_ctx", _CONTEXT)
    if type(context) is not int or not 0 < context <= _LONGEST_CONTEXT:
        raise UsageError(
            f"num_ctx is {context!r}, which is no number of tokens.",
            next_step="Give one with --param num_ctx=4096.",
        )
    model = EmbeddedModel(gguf, n_ctx=context, threads=threads or None)
    return Chat(model, system or own_system, stops, max_tokens, settings)


def _find_gguf(path: Path, quant: str | None) -> tuple[Path, Manifest | None]:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise NotAModelError(
                    f"{path} is no GGUF file.",
                    next_step="Name a .gguf file, or a folder that `ftpack gguf` has made.",
                )
        return path, None
    if not path.is_dir():
        raise SourceNotFoundError(
            f"There is no file or folder {path}.",
            next_step="Name a .gguf file, or a folder that `ftpack gguf` has made.",
        )
    manifest = read_bundle(path)
    found = [file for file in manifest.ggufs if quant in (None, file.quant)]
    if not found:
        have = ", ".join(file.quant for file in manifest.ggufs)
        raise SourceNotFoundError(f"{path} holds no {quant}; it has {have}.",
                                  next_step="Choose one of them with --quant.")  # fmt: skip
    return path / found[0].name, manifest
