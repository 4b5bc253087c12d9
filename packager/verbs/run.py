"""`ftpack run`: a chat with a bundle or a GGUF on the embedded runtime, with its history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packager.bundle.bundle import read_bundle
from packager.errors import NotAModelError, SourceNotFoundError, UsageError
from packager.runtime.embedded import EmbeddedModel
from packager.scalar import Scalar

# The context of a chat whose model asks for none, in tokens.
_CONTEXT = 4096
# llama.cpp counts in 32 bits; what is beyond would be taken for another number.
_LONGEST_CONTEXT = (1 << 31) - 1
_NAME_A_GGUF = "Name a .gguf file, or a folder that `ftpack gguf` has made."


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How to chat with a model.

    Attributes:
        quant: which of a bundle's quants, by llama.cpp's name; None for the first.
        system: a system prompt; None for the bundle's.
        max_tokens: the length in tokens at which an answer is cut.
        threads: the number of threads; 0 for one per core.
        parameters: parameters by Ollama's names, which override the bundle's.
    """

    quant: str | None = None
    system: str | None = None
    max_tokens: int = 512
    threads: int = 0
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


class Chat:
    """Turns with one model; each prompt contains the turns before it. A context manager.

    Args:
        model: the loaded model; `close` frees it.
        options: with `system` and `parameters` as they are in force.
        stops: what ends an answer, besides the model's own end-of-generation tokens.
    """

    def __init__(self, model: EmbeddedModel, options: ChatOptions, stops: tuple[str, ...]) -> None:
        self._model = model
        self._options = options
        self._stops = stops
        self._messages: list[dict[str, str]] = []
        if options.system:
            self._messages.append({"role": "system", "content": options.system})

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def answer(self, prompt: str) -> Iterator[str]:
        """The answer to one more user turn, piece by piece."""
        self._messages.append({"role": "user", "content": prompt})
        pieces = []
        for piece in self._model.stream(
            self._messages,
            stops=self._stops,
            max_tokens=self._options.max_tokens,
            parameters=self._options.parameters,
        ):
            pieces.append(piece)
            yield piece
        self._messages.append({"role": "assistant", "content": "".join(pieces)})


def run(path: Path, options: ChatOptions | None = None) -> Chat:
    """Load a bundle's GGUF, or a GGUF by its path, for a chat.

    Raises:
        SourceNotFoundError: if there is no such file, or no such quant in the bundle.
        NotAModelError: if it is neither a GGUF nor a bundle.
        UsageError: if `num_ctx` is not a number of tokens.
    """
    options = options or ChatOptions()
    if not path.is_dir():
        return _open(_require_gguf(path), options, ())
    bundle = read_bundle(path).select([options.quant] if options.quant else [])
    prompt = bundle.manifest.prompt
    in_force = ChatOptions(
        system=options.system or prompt.system,
        max_tokens=options.max_tokens,
        threads=options.threads,
        parameters={**prompt.parameters, **options.parameters},
    )
    return _open(bundle.path(bundle.ggufs[0]), in_force, prompt.stops)


def _open(gguf: Path, options: ChatOptions, stops: tuple[str, ...]) -> Chat:
    n_ctx = options.parameters.get("num_ctx", _CONTEXT)
    if type(n_ctx) is not int or not 0 < n_ctx <= _LONGEST_CONTEXT:
        raise UsageError(
            f"num_ctx is {n_ctx!r}, which is not a number of tokens.",
            next_step="Give one with --param num_ctx=4096.",
        )
    model = EmbeddedModel(gguf, n_ctx=n_ctx, threads=options.threads or None)
    return Chat(model, options, stops)


def _require_gguf(path: Path) -> Path:
    if not path.is_file():
        raise SourceNotFoundError(f"There is no file or folder {path}.", next_step=_NAME_A_GGUF)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise NotAModelError(f"{path} is not a GGUF file.", next_step=_NAME_A_GGUF)
    return path
