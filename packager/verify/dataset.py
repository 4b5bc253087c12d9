"""The user's own conversations, in the formats that trainers read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packager.errors import CorruptFileError
from packager.prompt.conversation import Conversation, Message

# The roles by ShareGPT's names.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
_NEXT = (
    'Give one JSON object a line: {"messages": [...]}, {"prompt": [...], "completion": [...]}, '
    'or ShareGPT\'s {"conversations": [...]}.'
)


def read_conversations(path: Path) -> tuple[Conversation, ...]:
    """The conversations in a JSONL file, each up to the beginning of its last answer.

    A line is an object with `messages`, with `prompt` (and `completion`), or with ShareGPT's
    `conversations`; it can also have `tools`.

    Raises:
        CorruptFileError: with the line that has another form.
    """
    try:
        # Not with `splitlines`, because a text can contain other line ends (U+2028).
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}", next_step=_NEXT) from error
    conversations = tuple(
        _conversation(line, f"{path.name}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not conversations:
        raise CorruptFileError(f"{path} contains no conversation.", next_step=_NEXT)
    return conversations


def _conversation(line: str, where: str) -> Conversation:
    record = _parse(line, where)
    if not isinstance(record, dict):
        raise CorruptFileError(f"{where}: the line is not a JSON object.", next_step=_NEXT)
    messages = tuple(_messages(record, where))
    # Training learns the last answer; its prompt ends where that answer begins.
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise CorruptFileError(f"{where}: there is no turn before the answer.", next_step=_NEXT)
    tools = record.get("tools") or ()
    if isinstance(tools, str):  # as in datasets without a fixed schema
        tools = _parse(tools, f"{where}, `tools`")
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise CorruptFileError(f"{where}: `tools` is not a list of objects.", next_step=_NEXT)
    return Conversation(where, messages, "own", tuple(tools))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where}: {error}", next_step=_NEXT) from error


def _messages(record: Mapping[str, object], where: str) -> Iterator[Message]:
    for key in ("messages", "prompt"):
        if isinstance(turns := record.get(key), list):
            yield from (_message(turn, where) for turn in turns)
            return
    if isinstance(turns := record.get("conversations"), list):
        if isinstance(system := record.get("system"), str) and system:
            yield {"role": "system", "content": system}
        yield from (_shared(turn, where) for turn in turns)
        return
    if isinstance(record.get("prompt"), str) or isinstance(record.get("text"), str):
        raise CorruptFileError(
            f"{where}: the prompt is a text, not turns; training used no chat template for it.",
            next_step=_NEXT,
        )
    raise CorruptFileError(
        f"{where}: the line has {', '.join(sorted(record))}, but no turns.", next_step=_NEXT
    )


def _message(turn: object, where: str) -> Message:
    if isinstance(turn, dict) and "from" in turn:
        return _shared(turn, where)
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise CorruptFileError(f"{where}: {str(turn)[:80]} is not a turn.", next_step=_NEXT)
    return {key: value for key, value in turn.items() if value is not None}


def _shared(turn: object, where: str) -> Message:
    role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
    if role is None or not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise CorruptFileError(f"{where}: {str(turn)[:80]} is not a turn.", next_step=_NEXT)
    return {"role": role, "content": turn["value"]}
