"""A daemon's description of a registered model, and whether it is what was sent."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.errors import RegistrationError
from packager.runtime.model_settings import ModelSettings
from packager.scalar import Scalar

# Ollama reports this as the template of a model that has none.
_BARE_TEMPLATE = "{{ .Prompt }}"
_BUILT_IN = re.compile(r"^(RENDERER|PARSER) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class ShowResponse:
    """The parts of `/api/show`'s answer that decide how prompts are rendered and answers sampled.

    Attributes:
        template_text: the template in force: Go, or Jinja if it is the GGUF's own.
        system: the system text; `""` if there is none.
        stops: the stop texts in their order.
        parameters: the other parameters.
        capabilities: the abilities that the daemon reports for the model.
        built_in: `RENDERER NAME` and `PARSER NAME`, if the daemon uses code of its own.
        modelfile: the daemon's Modelfile; its FROM is the GGUF on the daemon's disk.
    """

    template_text: str
    system: str
    stops: tuple[str, ...]
    parameters: Mapping[str, Scalar]
    capabilities: tuple[str, ...]
    built_in: tuple[str, ...]
    modelfile: str = ""

    @property
    def template_in_force(self) -> str:
        """What renders: `TEMPLATE`, `native` (the GGUF's Jinja), a built-in renderer, or `none`."""
        if self.built_in:
            return self.built_in[0]
        if "{%" in self.template_text or "{#" in self.template_text:
            return "native"
        return "none" if self.template_text in ("", _BARE_TEMPLATE) else "TEMPLATE"


def read_show_response(answer: Mapping[str, Any]) -> ShowResponse:
    """The typed form of `/api/show`'s answer."""
    template_text, system = str(answer.get("template") or ""), str(answer.get("system") or "")
    listing = str(answer.get("modelfile") or "")
    # Only the Modelfile names a renderer; a text inside it may have a line that looks like that.
    for text in filter(None, (template_text, system)):
        listing = listing.replace(text, "")
    parameters = _read_parameters(str(answer.get("parameters") or ""))
    stops = parameters.pop("stop", [])
    return ShowResponse(
        template_text=template_text,
        system=system,
        stops=tuple(str(stop) for stop in stops),
        parameters={name: values[0] for name, values in parameters.items()},
        capabilities=tuple(str(item) for item in answer.get("capabilities") or ()),
        built_in=tuple(" ".join(match) for match in _BUILT_IN.findall(listing)),
        modelfile=str(answer.get("modelfile") or ""),
    )


def _read_parameters(text: str) -> dict[str, list[Scalar]]:
    """The values in the lines `NAME    VALUE`, which Go writes with `%#v`."""
    parameters: dict[str, list[Scalar]] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(" ")
        if name:
            parameters.setdefault(name, []).append(_read_go_value(value.strip()))
    return parameters


def _read_go_value(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    try:
        # Go's quoted strings and numbers are also Python's.
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str) else text


def require_as_sent(name: str, response: ShowResponse, settings: ModelSettings) -> None:
    """Refuse a registered model that differs from what was sent.

    Args:
        name: the registered model.
        response: the daemon's description of it.
        settings: the settings that were sent.

    Raises:
        RegistrationError: with what differs.
    """
    expected = "native" if settings.ollama_template is None else "TEMPLATE"
    in_force = response.template_in_force
    if in_force != expected:
        renderer = _RENDERERS.get(in_force, f"the built-in {in_force}")
        raise RegistrationError(
            f"{name} is registered, but its prompts are rendered by {renderer}, not by "
            f"{_RENDERERS[expected]}.",
            next_step=_renderer_next_step(name, response, expected),
        )
    if settings.ollama_template is not None:
        _require_same(name, "template", settings.ollama_template, response.template_text)
    _require_same(name, "stops", settings.stops, response.stops)
    _require_same(name, "parameters", dict(settings.parameters), dict(response.parameters))


_RENDERERS = {
    "native": "the GGUF's own chat template",
    "TEMPLATE": "the Modelfile's TEMPLATE",
    "none": "no template at all (the bare prompt)",
}


def _renderer_next_step(name: str, response: ShowResponse, expected: str) -> str:
    remove = f"Remove it with `ollama rm {name}`"
    if response.built_in:
        return f"{remove}; this Ollama renders such models with its own code."
    if response.template_in_force == "none":
        return f"{remove}, and package the model with a chat template: `--template FILE`."
    if expected == "TEMPLATE":
        # Ollama's PreferChatTemplate: Jinja wins if it offers tools or thinking and Go does not.
        # Nothing says so when the model is created.
        return f"{remove}, and package it with `--template native`, which Ollama prefers here."
    return f"{remove}, and package the model again, so that Ollama does not add its own TEMPLATE."


def _require_same(name: str, what: str, sent: object, registered: object) -> None:
    if sent != registered:
        raise RegistrationError(
            f"{name} is registered, but not as sent: {what} {registered!r} instead of {sent!r}.",
            next_step=f"Remove it with `ollama rm {name}`, and register it again.",
        )
