"""The Modelfile: how Ollama should run a GGUF, as text for `ollama create`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from jinja2 import Environment, StrictUndefined

from packager.errors import ChatTemplateError, CorruptFileError
from packager.model.model_file import ModelFile
from packager.scalar import Scalar
from packager.templates import read_template

# generation_config.json's names (transformers) and Ollama's.
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_WHOLE = frozenset({"top_k"})
_LARGEST = 1 << 31  # servers use 32-bit integers
# These have no effect in transformers if `do_sample` is false; the penalty has.
_ONLY_SAMPLED = frozenset({"temperature", "top_k", "top_p", "min_p"})

# Ollama's parser ends a quoted value at the first line that ends with the closing quotes.
_EARLY_END = re.compile(r'"""[ \t]*[\r\n]')
_KEPT_WHITE_SPACE = "\n\r\t"
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True)
class ModelfileSpec:
    """The contents of a Modelfile, without the GGUF's name.

    Attributes:
        ollama_template: the TEMPLATE (Go); None for the GGUF's own chat template.
        system: the system text; None for none.
        stops: the texts that end an answer.
        parameters: the other parameters, under Ollama's names.
    """

    ollama_template: str | None
    system: str | None
    stops: tuple[str, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


def sampling_parameters(files: Mapping[str, ModelFile]) -> dict[str, int | float]:
    """The sampling settings of `generation_config.json`, under Ollama's names; no others.

    With `do_sample: false`, settings that only concern sampling have no effect in transformers, and
    are omitted here.

    Raises:
        CorruptFileError: if a setting is not a number.
    """
    file = files.get("generation_config.json")
    if file is None:
        return {}
    config = file.json
    parameters: dict[str, int | float] = {}
    for key, name in _SAMPLING.items():
        value = config.get(key)
        if value is None or (config.get("do_sample") is False and key in _ONLY_SAMPLED):
            continue
        parameters[name] = _number(value, key, file.path)
    return parameters


def _number(value: object, key: str, path: Path) -> int | float:
    if key in _WHOLE:
        is_valid = type(value) is int and abs(value) < _LARGEST
    else:
        is_valid = type(value) in (int, float) and math.isfinite(cast(float, value))
    if not is_valid:
        kind = "an integer" if key in _WHOLE else "a number"
        raise CorruptFileError(
            f"{path} has {value!r} under {key!r}, which must be {kind}.",
            next_step="Correct the value, or remove the line.",
        )
    return cast(float, value)


def render_modelfile(spec: ModelfileSpec, *gguf_files: str) -> str:
    """The Modelfile's text, which Ollama's parser reads back as `spec`.

    Args:
        spec: the contents.
        gguf_files: the name of the GGUF beside the Modelfile, or its path; for a multimodal model,
            also that of its `mmproj`.

    Raises:
        ChatTemplateError: if the Modelfile's syntax cannot express a text.
    """
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    modelfile_template = environment.from_string(read_template("Modelfile.jinja"))
    ollama_template, system = spec.ollama_template, spec.system
    return modelfile_template.render(
        from_values=[
            _bare(name if "/" in name else f"./{name}", "The GGUF's name") for name in gguf_files
        ],
        template=None if ollama_template is None else _block(ollama_template, "The TEMPLATE"),
        system=_block(system, "The SYSTEM text") if system else None,
        stops=[_inline(stop, f"The stop {stop!r}") for stop in spec.stops],
        parameters=[
            (_parameter_name(name), _parameter_value(name, value))
            for name, value in sorted(spec.parameters.items())
        ],
    )


def _block(text: str, what: str) -> str:
    """A text of any number of lines; everything between the quotes is kept, line ends too."""
    _require_printable(text, what)
    if _EARLY_END.search(text):
        raise _refusal(what, 'has a line that ends with """, at which a Modelfile ends the text')
    return f'"""{text}"""'


def _inline(text: str, what: str) -> str:
    if "\n" in text or "\r" in text or '"' in text:
        return _block(text, what)
    _require_printable(text, what)
    return f'"{text}"'


def _bare(text: str, what: str) -> str:
    _require_printable(text, what)
    if any(mark in text for mark in _KEPT_WHITE_SPACE) or text != text.strip():
        raise _refusal(what, "has a line end, a tab, or white space at its end")
    return text


def _parameter_name(name: str) -> str:
    if not _PARAMETER_NAME.fullmatch(name):
        raise _refusal(f"The parameter {name!r}", "has characters other than letters, digits and _")
    return name


def _parameter_value(name: str, value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _inline(value, f"The parameter {name}") if isinstance(value, str) else str(value)


def _require_printable(text: str, what: str) -> None:
    """Refuse characters that Ollama's parser deletes: those that Go's `strconv.IsPrint` rejects."""
    for character in text:
        if not character.isprintable() and character not in _KEPT_WHITE_SPACE:
            raise _refusal(what, f"has the character U+{ord(character):04X}, which Ollama deletes")


def _refusal(what: str, why: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"{what} cannot be written in a Modelfile: it {why}.",
        next_step="Remove it, or register through Ollama's API, which keeps every text unchanged.",
    )
