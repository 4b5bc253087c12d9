"""The user's conversations are read in the formats of trainers, each up to its last answer."""

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


def test_system_texts_tools_and_earlier_answers_are_kept(tmp_path: Path) -> None:
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
        ({"text": "Hi"}, "not turns"),
        ({"prompt": "Hi", "completion": "Hello"}, "not turns"),
        ({"instruction": "Hi"}, "instruction"),
        ({"messages": ["Hi"]}, "Hi is not a turn"),
        ({"conversations": [{"from": "moon", "value": "Hi"}]}, "moon"),
        ({"messages": TURNS[1:]}, "no turn before"),
        ([1], "not a JSON object"),
    ],
)
def test_a_line_that_is_not_a_conversation_is_named(
    record: object, fact: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=r"own\.jsonl, line 2") as caught:
        read_conversations(_write(tmp_path, {"messages": TURNS}, record))
    assert fact in caught.value.message
    assert "messages" in caught.value.next_step


@pytest.mark.parametrize("tools", ["{", 5, {"a": 1}, ["x"]])
def test_invalid_tools_are_named_by_their_line(tools: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"line 1.*tools"):
        read_conversations(_write(tmp_path, {"messages": TURNS, "tools": tools}))


def test_deeply_nested_json_is_a_corrupt_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("[" * 100_000)

    with pytest.raises(CorruptFileError, match="line 1"):
        read_conversations(path)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    turn = {"role": "user", "content": "one\u2028two\u0085three"}
    path.write_text(json.dumps({"messages": [turn]}, ensure_ascii=False), encoding="utf-8")

    (conversation,) = read_conversations(path)

    assert conversation.messages == (turn,)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="no conversation"):
        read_conversations(_write(tmp_path))
    with pytest.raises(CorruptFileError, match="cannot be read"):
        read_conversations(tmp_path / "missing.jsonl")
