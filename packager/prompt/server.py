"""What an Ollama server does to a conversation, and to whom it gives it to render."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from packager.prompt.conversation import REASONING_FIELDS, Conversation, Message


def server_variables() -> dict[str, object]:
    """What llama-server defines for every chat template, and transformers does not.

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
    """Whether Ollama takes a model of this chat template for one that takes tools."""
    return "tools" in chat_template_source or "tool_call" in chat_template_source


def claims_thinking(chat_template_source: str) -> bool:
    """Whether Ollama takes a model of this chat template for one that thinks."""
    source = chat_template_source
    if "<think>" in source and "</think>" in source:
        return True
    splits = any(f"content.split({quote}</think>{quote})" in source for quote in "'\"")
    return splits and "reasoning_content" not in source and "<SPECIAL_12>" not in source


@dataclass(frozen=True)
class Change:
    """Something that a server does to every conversation before it is rendered.

    Attributes:
        cause: what it does, for the user.
        apply: the conversation as it is then.
        is_by_templates: whether it happens only where a TEMPLATE renders, and always there.
    """

    cause: str
    apply: Callable[[Conversation], Conversation]
    is_by_templates: bool = False


def _with_rewritten_tools(conversation: Conversation) -> Conversation:
    return replace(conversation, tools=tuple(_rewritten_tool(tool) for tool in conversation.tools))


def _with_pruned_tools(conversation: Conversation) -> Conversation:
    """The tools with what Ollama has a place for, `required` after `properties` as in training."""
    pruned = []
    for tool in _with_rewritten_tools(conversation).tools:
        function = _mapping(tool["function"])
        parameters = dict(_mapping(function["parameters"]))
        if "required" in parameters:
            parameters["required"] = parameters.pop("required")
        pruned.append({**tool, "function": {**function, "parameters": parameters}})
    return replace(conversation, tools=tuple(pruned))


def _rewritten_tool(tool: Mapping[str, object]) -> dict[str, object]:
    """A function's schema with what `api.Tool` has a place for, in its order."""
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
    """A property with what `api.ToolProperty` has a place for, in its order."""
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
    """Free-form values as Go writes them: the keys of an object sorted."""
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
    """Calls and results without the ids that link them."""

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
    """The conversation as it reaches a GGUF's own chat template on a server."""
    return _without_reasoning(_with_rewritten_tools(conversation))


def _joined(conversation: Conversation) -> Conversation:
    """Messages of one role in a row made one (`collate` in Ollama's template.go)."""
    messages: list[Message] = []
    for message in conversation.messages:
        last = messages[-1] if messages else {}
        if last and last["role"] == message["role"] != "tool":
            content = f"{last.get('content') or ''}\n\n{message.get('content') or ''}"
            messages[-1] = {**last, "content": content}
        else:
            messages.append(message)
    return _with_messages(conversation, messages)


def trimmed_forms(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation with its messages trimmed: of some roles, at one end or both."""
    roles = sorted({str(message["role"]) for message in conversation.messages})
    for number in range(1, len(roles) + 1):
        for chosen in itertools.combinations(roles, number):
            for trim in (str.strip, str.lstrip, str.rstrip):
                yield _with_messages(
                    conversation,
                    [
                        {**message, "content": trim(str(message.get("content") or ""))}
                        if message["role"] in chosen
                        else message
                        for message in conversation.messages
                    ],
                )


def _without_thinking_in_answers(conversation: Conversation) -> Conversation:
    """Earlier answers without what is between the tags (`filterThinkTags` in Ollama's routes)."""
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
    Change("the server writes tool schemas anew", _with_rewritten_tools),
    Change("the server leaves out parts of tool schemas", _with_pruned_tools),
    Change("the server leaves reasoning out of the history", _without_reasoning),
    Change("the server gives calls' arguments as text", _with_arguments_as_text),
    Change("the server leaves out the ids of calls", _with_bare_calls),
    Change("messages of one role in a row are joined", _joined, is_by_templates=True),
    Change("thoughts are taken out of earlier answers", _without_thinking_in_answers),
    Change("thinking is fixed as in training", _without_choice),
    Change("tools are left out", _without_tools),
)
