"""The Ollama template (Go) that renders what a chat template renders: known, or derived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packager.errors import ChatTemplateError, PromptRefusedError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Comparison, compare
from packager.prompt.conversation import CORE, PREFILLED, Conversation
from packager.prompt.go.derive import derive_ollama_templates
from packager.prompt.go.render import render_go_template
from packager.templates import read_template, template_names

_FOLDER = "ollama"
_END = ".gotmpl"


@dataclass(frozen=True)
class OllamaTemplate:
    """An Ollama template that renders the training prompts.

    Attributes:
        family: its family; None if it was derived from the chat template.
        source: its text (Go).
        comparison: its prompts, compared with the training prompts.
    """

    family: str | None
    source: str
    comparison: Comparison


def known_templates() -> dict[str, str]:
    """The texts of the known Ollama templates by name; `FAMILY-VARIANT` is one of `FAMILY`."""
    names = [name for name in template_names(_FOLDER) if name.endswith(_END)]
    return {name.removesuffix(_END): read_template(f"{_FOLDER}/{name}") for name in names}


def family_of(name: str) -> str:
    """The family of a known Ollama template."""
    return name.partition("-")[0]


def find_ollama_template(
    chat_template: ChatTemplate, conversations: Sequence[Conversation] = (*CORE, *PREFILLED)
) -> OllamaTemplate | None:
    """The first Ollama template that renders the same prompts as a chat template, or None.

    Only what no TEMPLATE can do may differ, as a known difference in the comparison: the server
    joins turns of one role in a row, and a TEMPLATE cannot trim.

    Args:
        chat_template: the training chat template.
        conversations: those whose prompts are compared.
    """
    for family, source in _candidates(chat_template):
        comparison = compare_go(chat_template, source, conversations)
        if not comparison.failed and comparison.count("equal"):
            return OllamaTemplate(family, source, comparison)
    return None


def compare_go(
    chat_template: ChatTemplate, ollama_template: str, conversations: Sequence[Conversation]
) -> Comparison:
    """Compare the prompts of an Ollama template, as Ollama evaluates it, with a chat template's."""

    def render(conversation: Conversation) -> str:
        if conversation.tools:
            raise PromptRefusedError("the TEMPLATE does not support tools")
        if conversation.thinking is not None:
            raise PromptRefusedError("the TEMPLATE does not support thinking")
        try:
            return render_go_template(ollama_template, conversation.messages)
        except ChatTemplateError as error:
            raise PromptRefusedError(error.message) from error

    return compare(chat_template, conversations, render, "offline", is_by_template=True)


def _candidates(chat_template: ChatTemplate) -> Iterator[tuple[str | None, str]]:
    """The text of each template that may fit, after its family if it is a known one."""
    # First one conversation alone: most of the known ones differ in every conversation.
    for name, source in known_templates().items():
        if not compare_go(chat_template, source, CORE[:1]).failed:
            yield family_of(name), source
    for source in derive_ollama_templates(chat_template):
        yield None, source
