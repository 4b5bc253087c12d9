"""A turn of a conversation as Ollama's API takes it, and the API's refusals as plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

# The names that trainers have for an assistant's reasoning.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def api_message(message: Mapping[str, object]) -> dict[str, object]:
    """The turn with the names of Ollama's API (`api.Message`).

    Args:
        message: a turn as transformers' chat templates know it: `role`, `content` (a text, or parts
            of which the texts are taken), `reasoning_content`, `tool_calls`, `name` or
            `tool_call_id` of a tool's result.
    """
    turned: dict[str, object] = {
        "role": message["role"],
        "content": _text(message.get("content")),
    }
    for name in _REASONING:
        if message.get(name):
            turned.setdefault("thinking", message[name])
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        turned["tool_calls"] = [_call(call) for call in calls if isinstance(call, Mapping)]
    if message.get("role") == "tool":
        for ours, theirs in (("name", "tool_name"), ("tool_call_id", "tool_call_id")):
            if message.get(ours):
                turned[theirs] = message[ours]
    return turned


def refusal_reason(text: str) -> str:
    """The message inside an error of the API, which may hold an error of its runner, as JSON."""
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
    # The model's name is left out: `"NAME" does not support thinking`.
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
    if isinstance(arguments, str):  # as OpenAI's API writes them
        arguments = json.loads(arguments)
    turned: dict[str, object] = {
        "function": {"name": function.get("name"), "arguments": arguments or {}}
    }
    return {"id": call["id"], **turned} if call.get("id") else turned
