"""The training chat template as a bundle's manifest keeps it, and back."""

from __future__ import annotations

from packager.bundle.manifest import TrainedTemplate
from packager.prompt.chat_template import ChatTemplate
from packager.scalar import Scalar


def record_template(chat_template: ChatTemplate) -> TrainedTemplate:
    """The record of a training chat template."""
    named = {"bos_token": chat_template.bos_token, "eos_token": chat_template.eos_token}
    tokens = {name: token for name, token in named.items() if token is not None}
    return TrainedTemplate(
        source=chat_template.source,
        tool_use=chat_template.tool_use,
        tokens={**chat_template.other_tokens, **tokens},
        variables={
            name: value
            for name, value in chat_template.variables.items()
            if isinstance(value, Scalar)
        },
    )


def recorded_template(record: TrainedTemplate, origin: str) -> ChatTemplate:
    """The training chat template of a record; `origin` says where it comes from."""
    tokens = dict(record.tokens)
    bos_token, eos_token = tokens.pop("bos_token", None), tokens.pop("eos_token", None)
    return ChatTemplate(
        record.source, origin, bos_token, eos_token, tokens, record.tool_use, record.variables
    )
