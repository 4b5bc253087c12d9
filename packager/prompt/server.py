"""How an Ollama server changes a conversation before it renders it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from packager.prompt.conversation import Conversation, Message
from packager.runtime.api_message import REASONING_FIELDS


def server_variables() -> dict[str, object]:
    """The variables that llama-server, unlike transformers, sets for every chat template.

    `common/chat.cpp` sets the first three, `common/jinja/caps.cpp` the others.
    """
    now = datetime.now()
    return {
        "enable_thinking": True,
        "date_string": now.strftime("%d %b %Y"),
        "datetime": now.strftime("%b %d %Y"),
        "preserve_reasoning": True,
        "preserve_thinking": True,
        "clear_thinking": False,
        "truncate_history_thinking": False,
        "drop_thinking": False,
    }


def claims_tools(chat_template_source: str) -> bool:
    """Whether Ollama assumes that a model with this chat template can use tools."""
    return "tools" in chat_template_source or "tool_call" in chat_template_source


def claims_thinking(chat_template_source: str) -> bool:
    """Whether Ollama assumes that a model with this chat template can think."""
    source = chat_template_source
    if "<think>" in source and "</think>" in source:
        return True
    splits = any(f"content.split({quote}</think>{quote})" in source for quote in "'\"")
    return splits and "reasoning_content" not in source and "<SPECIAL_12>" not in source


@dataclass(frozen=True)
class Change:
    """A change that a server makes to every conversation before it renders it.

    Attributes:
        cause: what the server does, for the user.
        apply: gives the changed conversation.
        is_only_by_go: whether it happens if, and only if, a TEMPLATE (Go) renders.
    """

    cause: str
    apply: Callable[[Conversation], Conversation]
    is_only_by_go: bool = False


def _with_rewritten_tools(conversation: Conversation) -> Conversation:
    return replace(conversation, tools=tuple(_rewritten_tool(tool) for tool in conversation.tools))


def _with_pruned_tools(conversation: Conversation) -> Conversation:
    """The tools with the keys that Ollama can hold, in the order of training."""
    pruned = []
    for tool in _with_rewritten_tools(conversation).tools:
        function = _mapping(tool["function"])
        parameters = dict(_mapping(function["parameters"]))
        if "required" in parameters:
            parameters["required"] = parameters.pop("required")
        pruned.append({**tool, "function": {**function, "parameters": parameters}})
    return replace(conversation, tools=tuple(pruned))


def _rewritten_tool(tool: Mapping[str, object]) -> dict[str, object]:
    """A function's schema with the keys that `api.Tool` can hold, in its order."""
    function = _mapping(tool.get("function"))
    parameters = _mapping(function.get("parameters"))
    written: dict[str, object] = {"type": parameters.get("type", "")}
    for key in ("$defs", "items", "required"):
        if parameters.get(key):
            written[key] = _sorted(parameters[key]) if key != "required" else parameters[key]
    written["properties"] = _rewritten_properties(_mapping(parameters.get("properties")))
    described: dict[str, object] = {"name": function.get("name", "")}
    if function.get("description"):
        described["description"] = function["description"]
    return {"type": tool.get("type", ""), "function": {**described, "parameters": written}}


def _rewritten_properties(properties: Mapping[str, object]) -> dict[str, object]:
    return {name: _rewritten_property(_mapping(value)) for name, value in properties.items()}


def _rewritten_property(value: Mapping[str, object]) -> dict[str, object]:
    """A property with the keys that `api.ToolProperty` can hold, in its order."""
    written: dict[str, object] = {}
    if isinstance(any_of := value.get("anyOf"), list) and any_of:
        written["anyOf"] = [_rewritten_property(_mapping(item)) for item in any_of]
    if kind := value.get("type"):
        written["type"] = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    for key in ("items", "description", "enum"):
        if value.get(key):
            written[key] = _sorted(value[key])
    if value.get("properties"):
        written["properties"] = _rewritten_properties(_mapping(value["properties"]))
    if value.get("required"):
        written["required"] = value["required"]
    return written


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _sorted(value: object) -> object:
    """A free-form value as Go writes it: with the keys of objects sorted."""
    return json.loads(json.dumps(value, sort_keys=True))


def _without_reasoning(conversation: Conversation) -> Conversation:
    return _with_messages(
        conversation,
        [
            {k: v for k, v in message.items() if k not in REASONING_FIELDS}
            for message in conversation.messages
        ],
    )


def _with_arguments_as_text(conversation: Conversation) -> Conversation:
    return _with_messages(
        conversation, [_with_calls(message, _as_text) for message in conversation.messages]
    )


def _with_bare_calls(conversation: Conversation) -> Conversation:
    """The conversation without the ids that link calls and results."""

    def bare(call: Mapping[str, object]) -> Mapping[str, object]:
        return {key: value for key, value in call.items() if key != "id"}

    messages = [_with_calls(message, bare) for message in conversation.messages]
    return _with_messages(
        conversation,
        [{k: v for k, v in message.items() if k != "tool_call_id"} for message in messages],
    )


def _as_text(call: Mapping[str, object]) -> Mapping[str, object]:
    function = _mapping(call.get("function"))
    text = json.dumps(function.get("arguments"), ensure_ascii=False, separators=(",", ":"))
    return {**call, "function": {**function, "arguments": text}}


def _with_calls(
    message: Message, change: Callable[[Mapping[str, object]], Mapping[str, object]]
) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [change(_mapping(call)) for call in calls]}


def as_native_server(conversation: Conversation) -> Conversation:
    """The conversation as a server passes it to a GGUF's own chat template."""
    return _without_reasoning(_with_rewritten_tools(conversation))


def collate(messages: Sequence[Message]) -> list[Message]:
    """The messages with those of one role in a row joined (`collate` in Ollama's template.go)."""
    collated: list[Message] = []
    for message in messages:
        last = collated[-1] if collated else {}
        if last and last["role"] == message["role"] != "tool":
            content = f"{last.get('content') or ''}\n\n{message.get('content') or ''}"
            collated[-1] = {**last, "content": content}
        else:
            collated.append(message)
    return collated


def _collated(conversation: Conversation) -> Conversation:
    return _with_messages(conversation, collate(conversation.messages))


def trimmed_forms(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation with the messages of some roles trimmed, at one end or at both."""
    roles = sorted({str(message["role"]) for message in conversation.messages})
    for number in range(1, len(roles) + 1):
        for subset in itertools.combinations(roles, number):
            for trim in (str.strip, str.lstrip, str.rstrip):
                yield _with_messages(
                    conversation,
                    [
                        {**message, "content": trim(str(message.get("content") or ""))}
                        if message["role"] in subset
                        else message
                        for message in conversation.messages
                    ],
                )


def _without_thinking_in_answers(conversation: Conversation) -> Conversation:
    """The conversation without thoughts in earlier answers (Ollama's `filterThinkTags`)."""
    last = max(
        (at for at, message in enumerate(conversation.messages) if message["role"] == "user"),
        default=-1,
    )
    return _with_messages(
        conversation,
        [
            {**message, "content": _without_tags(str(message.get("content") or ""))}
            if message["role"] == "assistant" and at < last
            else message
            for at, message in enumerate(conversation.messages)
        ],
    )


def _without_tags(content: str) -> str:
    return re.sub(r"<think>(?s:.*?)</think>", "", content).strip()


def _without_tools(conversation: Conversation) -> Conversation:
    return replace(conversation, tools=())


def _without_choice(conversation: Conversation) -> Conversation:
    return replace(conversation, thinking=None)


def _with_messages(conversation: Conversation, messages: Sequence[Message]) -> Conversation:
    return replace(conversation, messages=tuple(messages))


CHANGES: tuple[Change, ...] = (
    Change("the server rewrites tool schemas", _with_rewritten_tools),
    Change("the server omits parts of tool schemas", _with_pruned_tools),
    Change("the server omits reasoning from the history", _without_reasoning),
    Change("the server passes the arguments of calls as text", _with_arguments_as_text),
    Change("the server omits the ids of calls", _with_bare_calls),
    Change("the server joins messages of one role in a row", _collated, is_only_by_go=True),
    Change("the server removes thoughts from earlier answers", _without_thinking_in_answers),
    Change("thinking is fixed as in training", _without_choice),
    Change("the server omits tools", _without_tools),
)
