"""A turn of a conversation in the form of Ollama's API, and the reason inside an API error."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

# The names that trainers give an assistant's reasoning.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def api_message(message: Mapping[str, object]) -> dict[str, object]:
    """The turn with the field names of Ollama's API (`api.Message`).

    Args:
        message: a turn for transformers' chat templates: `role`, `content` (a text, or parts whose
            texts are joined), `reasoning_content`, `tool_calls`, and the `name` or `tool_call_id`
            of a tool's result.
    """
    converted: dict[str, object] = {
        "role": message["role"],
        "content": _text(message.get("content")),
    }
    for name in REASONING_FIELDS:
        if message.get(name):
            converted.setdefault("thinking", message[name])
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        converted["tool_calls"] = [_call(call) for call in calls if isinstance(call, Mapping)]
    if message.get("role") == "tool":
        for ours, theirs in (("name", "tool_name"), ("tool_call_id", "tool_call_id")):
            if message.get(ours):
                converted[theirs] = message[ours]
    return converted


def refusal_reason(text: str) -> str:
    """The message inside an API error, which can contain its runner's error as JSON."""
    while True:
        try:
            value = json.loads(text)
        except ValueError:
            break
        error = value.get("error") if isinstance(value, dict) else None
        inner = error.get("message") if isinstance(error, dict) else error
        if not isinstance(inner, str):
            break
        text = inner
    # Without the model's name: `"NAME" does not support thinking`.
    text = re.sub(r'^"?\S+ (does not support \w+)$', r"the model \1", text.strip())
    return " ".join(text.split())[:300]


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        return "".join(str(part.get("text") or "") for part in parts)
    return "" if content is None else str(content)


def _call(call: Mapping[str, object]) -> dict[str, object]:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else call
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI's API sends them as JSON text
        arguments = json.loads(arguments)
    converted: dict[str, object] = {
        "function": {"name": function.get("name"), "arguments": arguments or {}}
    }
    return {"id": call["id"], **converted} if call.get("id") else converted
