"""The types of options: a text from the command line, as the value that it means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.gguf.quants import QUANTS, Quant, parse_quant
from packager.prompt.ollama_version import OllamaVersion
from packager.scalar import Scalar

if TYPE_CHECKING:
    _QuantType = click.ParamType[Quant]
    _PairType = click.ParamType[tuple[str, Scalar]]
    _IntType = click.ParamType[int]
    _RendererType = click.ParamType[str | Path]
    _VersionType = click.ParamType[OllamaVersion]
else:  # only newer releases of Click can be subscripted when the program runs
    _QuantType = _PairType = _IntType = _RendererType = _VersionType = click.ParamType

_RENDERERS = ("auto", "native", "go")


class QuantType(_QuantType):
    """A quant by its name in any case; a wrong one lists the near ones."""

    name = "quant"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Quant:
        """The quant."""
        return value if isinstance(value, Quant) else parse_quant(str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The quants that begin with what was typed, in its case."""
        from click.shell_completion import CompletionItem

        names = [name if incomplete.isupper() else name.lower() for name in QUANTS]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ParameterType(_PairType):
    """`KEY=VALUE`; the value is a number if it reads as one."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Scalar]:
        """The key, and the typed value."""
        if isinstance(value, tuple):
            return value
        key, mark, text = str(value).partition("=")
        if not mark or not key.isidentifier():
            self.fail(f"{value!r} is not of the form KEY=VALUE, such as temperature=0.7.")
        if text.lower() in ("true", "false"):
            return key, text.lower() == "true"
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            if not math.isfinite(value):
                self.fail(f"{key} cannot be {text}, which is not a finite number.")
            return key, value
        return key, text


class ContextType(_IntType):
    """A number of tokens, `131072` or `128k`."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of tokens."""
        text = str(value).lower()
        number, unit = (text[:-1], 1024) if text.endswith("k") else (text, 1)
        if not number.isdecimal() or not int(number):
            self.fail(f"{value!r} is not a number of tokens, such as 32768 or 32k.")
        return int(number) * unit


class RendererType(_RendererType):
    """A renderer by its name, or the path of a chat template."""

    name = "renderer"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:
        """The renderer's name, or the path."""
        return value if value in _RENDERERS else Path(value)


class VersionType(_VersionType):
    """A version of Ollama, such as `0.32.15`."""

    name = "version"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> OllamaVersion:
        """The version."""
        return value if isinstance(value, OllamaVersion) else OllamaVersion.parse(str(value))
