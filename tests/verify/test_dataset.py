"""A user's own conversations are read in the formats of trainers, each up to its last answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packager.errors import CorruptFileError
from packager.verify.dataset import read_conversations

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
SYSTEM = {"role": "system", "content": "S"}


def _write(folder: Path, *records: object) -> Path:
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"conversations": SHARED},
        {"messages": SHARED},
    ],
)
def test_each_format_is_read(record: dict[str, object], tmp_path: Path) -> None:
    (conversation,) = read_conversations(_write(tmp_path, record))
    assert conversation.messages == ({"role": "user", "content": "Hi"},)
    assert (conversation.name, conversation.kind) == ("own.jsonl, line 1", "own")


def test_system_texts_tools_and_earlier_answers_stay(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    first = {"conversations": SHARED, "system": "S", "tools": json.dumps(tools)}
    second = {"messages": [SYSTEM, *TURNS, *TURNS], "tools": tools}
    one, two = read_conversations(_write(tmp_path, first, second))
    assert [message["role"] for message in one.messages] == ["system", "user"]
    assert one.tools == two.tools == tuple(tools)
    assert [m["role"] for m in two.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("record", "fact"),
    [
        ({"text": "Hi"}, "chat template"),
        ({"prompt": "Hi", "completion": "Hello"}, "chat template"),
        ({"instruction": "Hi"}, "instruction"),
        ({"messages": ["Hi"]}, "Hi"),
        ({"conversations": [{"from": "moon", "value": "Hi"}]}, "moon"),
        ({"messages": TURNS[1:]}, "answer"),
        ([1], "object"),
    ],
)
def test_a_line_that_is_not_a_conversation_is_refused_with_its_number(
    record: object, fact: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=r"own\.jsonl, line 2") as caught:
        read_conversations(_write(tmp_path, {"messages": TURNS}, record))
    assert fact in caught.value.message
    assert "messages" in caught.value.next_step


@pytest.mark.parametrize("tools", ["{", 5, {"a": 1}, ["x"]])
def test_invalid_tools_are_refused_with_the_number_of_their_line(
    tools: object, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=r"line 1.*tools"):
        read_conversations(_write(tmp_path, {"messages": TURNS, "tools": tools}))


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("[" * 100_000)

    with pytest.raises(CorruptFileError, match="line 1"):
        read_conversations(path)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    turn = {"role": "user", "content": "one\u2028two\u0085three"}
    path.write_text(json.dumps({"messages": [turn]}, ensure_ascii=False), encoding="utf-8")

    (read,) = read_conversations(path)

    assert read.messages == (turn,)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"own\.jsonl"):
        read_conversations(_write(tmp_path))
    with pytest.raises(CorruptFileError, match=r"missing\.jsonl"):
        read_conversations(tmp_path / "missing.jsonl")
