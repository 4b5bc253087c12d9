"""What a daemon tells about a registered model, and whether that is what was sent."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packager.errors import RegistrationError
from packager.scalar import Scalar

# What Ollama tells as the template of a model that has none.
_BARE_TEMPLATE = "{{ .Prompt }}"
_BUILT_IN = re.compile(r"^(RENDERER|PARSER) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class ShownModel:
    """The parts of `/api/show` that decide how a prompt is rendered and an answer sampled.

    Attributes:
        template: the template in force; Jinja where the GGUF's own is.
        system: the system text, `""` without one.
        stops: the stop texts in their order.
        parameters: the other parameters.
        capabilities: what the daemon takes the model to be capable of.
        built_in: `RENDERER NAME` and `PARSER NAME`, where the daemon uses its own code.
        modelfile: the listing, whose FROM is the GGUF on the daemon's disk.
    """

    template: str
    system: str
    stops: tuple[str, ...]
    parameters: Mapping[str, Scalar]
    capabilities: tuple[str, ...]
    built_in: tuple[str, ...]
    modelfile: str = ""

    @property
    def template_in_force(self) -> str:
        """Who renders: `TEMPLATE`, `native` (the GGUF's Jinja), a built-in renderer, `none`."""
        if self.built_in:
            return self.built_in[0]
        if "{%" in self.template or "{#" in self.template:
            return "native"
        return "none" if self.template in ("", _BARE_TEMPLATE) else "TEMPLATE"


def read_shown(answer: Mapping[str, Any]) -> ShownModel:
    """The model that an answer of `/api/show` tells of."""
    template, system = str(answer.get("template") or ""), str(answer.get("system") or "")
    listing = str(answer.get("modelfile") or "")
    # Only the listing tells of a renderer; a text in it may have lines that look like one.
    for text in filter(None, (template, system)):
        listing = listing.replace(text, "")
    parameters = _read_parameters(str(answer.get("parameters") or ""))
    stops = parameters.pop("stop", [])
    return ShownModel(
        template=template,
        system=system,
        stops=tuple(str(stop) for stop in stops),
        parameters={name: values[0] for name, values in parameters.items()},
        capabilities=tuple(str(item) for item in answer.get("capabilities") or ()),
        built_in=tuple(" ".join(match) for match in _BUILT_IN.findall(listing)),
        modelfile=str(answer.get("modelfile") or ""),
    )


def _read_parameters(text: str) -> dict[str, list[Scalar]]:
    """The lines `NAME    VALUE`, where a value is written as Go writes it (`%#v`)."""
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
        # Go's quoted strings and numbers are Python's too.
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str) else text


def require_as_sent(
    name: str,
    shown: ShownModel,
    *,
    ollama_template: str | None,
    gguf_chat_template: str | None,
    stops: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
) -> None:
    """Refuse a registration that differs from what was sent.

    Args:
        name: the registered model.
        shown: what the daemon tells of it.
        ollama_template: the Go template sent, or `None` where the GGUF's own is to be in force.
        gguf_chat_template: the GGUF's Jinja, to be told exactly; `None` takes any Jinja.
        stops: the stop texts sent.
        parameters: the other parameters sent; `None` compares none.

    Raises:
        RegistrationError: naming what differs.
    """
    expected = "native" if ollama_template is None else "TEMPLATE"
    if shown.template_in_force != expected:
        raise RegistrationError(
            f"{name} is registered, but its prompts are rendered by "
            f"{_RENDERERS.get(shown.template_in_force, 'the built-in ' + shown.template_in_force)}"
            f", not by {_RENDERERS[expected]}.",
            next_step=_renderer_next_step(name, shown, expected),
        )
    sent_template = gguf_chat_template if ollama_template is None else ollama_template
    _require_equal(name, "template", sent_template, shown.template)
    _require_equal(name, "stops", tuple(stops), shown.stops)
    if parameters is not None:
        _require_equal(name, "parameters", dict(parameters), dict(shown.parameters))


_RENDERERS = {
    "native": "the GGUF's own chat template",
    "TEMPLATE": "the Modelfile's TEMPLATE",
    "none": "no template at all (the bare prompt)",
}


def _renderer_next_step(name: str, shown: ShownModel, expected: str) -> str:
    remove = f"Remove it with `ollama rm {name}`"
    if shown.built_in:
        return f"{remove}; this Ollama renders such models with code of its own."
    if shown.template_in_force == "none":
        return f"{remove}, and package the model with a chat template: `--template FILE`."
    if expected == "TEMPLATE":
        # PreferChatTemplate in Ollama: Jinja wins where it offers tools or thinking and Go does
        # not, and nothing tells so when the model is created.
        return f"{remove}, and package it with `--template native`: Ollama prefers that one."
    return f"{remove}, and package the model again: the GGUF must keep Ollama from adding its own."


def _require_equal(name: str, what: str, sent: object, shown: object) -> None:
    if sent is not None and sent != shown:
        raise RegistrationError(
            f"{name} is registered, but not as sent: {what} {shown!r} in place of {sent!r}.",
            next_step=f"Remove it with `ollama rm {name}`, and register it again.",
        )
