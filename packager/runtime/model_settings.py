"""How Ollama should run a GGUF: what a Modelfile says, and what the API is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packager.scalar import Scalar


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a model in Ollama, without its GGUF.

    Attributes:
        ollama_template: the TEMPLATE (Go); None for the GGUF's own chat template.
        system: the system text; None for none.
        stops: the texts that end an answer.
        parameters: the other parameters, under Ollama's names.
    """

    ollama_template: str | None = None
    system: str | None = None
    stops: tuple[str, ...] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
