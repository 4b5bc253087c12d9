"""What the user says about prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from packager.prompt.ollama_version import OllamaVersion
from packager.scalar import Scalar

Renderer = Literal["auto", "native", "go"]
Thinking = Literal["as-trained", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Who renders prompts, and what the Modelfile says.

    Attributes:
        renderer: `native` for the GGUF's own chat template, `go` for an Ollama template (Go), or
            `auto` for the one that renders the training prompt.
        chat_template_file: the Jinja chat template that training used; None for the model's own.
        thinking: whether the model was trained to think; `as-trained` for what its chat template
            does by itself.
        system: a system prompt for the Modelfile.
        stops: further stop strings.
        parameters: Ollama parameters, which override what the model's own files say.
        preset: the name of a family's published sampling settings; None to write none.
        context_length: the context in tokens, by YaRN if it exceeds the model's own; None for the
            model's own.
        ollama_version: the server's version; None for the newest known.
    """

    renderer: Renderer = "auto"
    chat_template_file: Path | None = None
    thinking: Thinking = "as-trained"
    system: str | None = None
    stops: tuple[str, ...] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    preset: str | None = None
    context_length: int | None = None
    ollama_version: OllamaVersion | None = None
