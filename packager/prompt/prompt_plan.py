"""Everything that is decided about a model's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.prompt.chat_template import ChatTemplate
from packager.prompt.decision import PromptDecision
from packager.runtime.model_settings import ModelSettings


@dataclass(frozen=True)
class PromptPlan:
    """The prompt of a model that will be packaged.

    Attributes:
        chat_template: the training chat template.
        decision: who renders it, and what ends an answer.
        modelfile: what the Modelfile says.
    """

    chat_template: ChatTemplate
    decision: PromptDecision
    modelfile: ModelSettings

    @property
    def gguf_chat_templates(self) -> Mapping[str, str]:
        """The chat templates that the GGUF contains, by name."""
        templates = {"default": self.decision.gguf_chat_template}
        if self.decision.gguf_tool_use_template:
            templates["tool_use"] = self.decision.gguf_tool_use_template
        return templates
