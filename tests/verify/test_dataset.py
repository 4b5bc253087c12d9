"""A user's own conversations are read as trainers write them, each up to its last answer."""

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
    (found,) = read_conversations(_write(tmp_path, record))
    assert found.messages == ({"role": "user", "content": "Hi"},)
    assert (found.name, found.kind) == ("own.jsonl, line 1", "own")


def test_system_texts_tools_and_earlier_answers_stay(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    first = {"conversations": SHARED, "system": "S", "tools": json.dumps(tools)}
    second = {"messages": [SYSTEM, *TURNS, *TURNS], "tools": tools}
    one, two = read_conversations(_write(tmp_path, first, second))
    assert [message["role"] for message in one.messages] == ["system", "user"]
    assert one.tools == two.tools == tuple(tools)
    assert [m["role"] for m in two.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "Hi"}, "not turns"),
        ({"prompt": "Hi", "completion": "Hello"}, "not turns"),
        ({"instruction": "Hi"}, "instruction"),
        ({"messages": ["Hi"]}, "no turn"),
        ({"conversations": [{"from": "moon", "value": "Hi"}]}, "no turn"),
        ({"messages": TURNS[1:]}, "no turn before an answer"),
        ([1], "no object"),
    ],
)
def test_what_is_no_conversation_is_named_by_its_line(
    record: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=r"own\.jsonl, line 2") as caught:
        read_conversations(_write(tmp_path, {"messages": TURNS}, record))
    assert said in caught.value.message
    assert "messages" in caught.value.next_step


@pytest.mark.parametrize("tools", ["{", 5, {"a": 1}, ["x"]])
def test_tools_that_are_none_are_named_by_their_line(tools: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"line 1.*tools"):
        read_conversations(_write(tmp_path, {"messages": TURNS, "tools": tools}))


def test_json_made_to_break_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("[" * 100_000)

    with pytest.raises(CorruptFileError, match="line 1"):
        read_conversations(path)


def test_a_line_ends_only_where_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    turn = {"role": "user", "content": "one\u2028two\u0085three"}
    path.write_text(json.dumps({"messages": [turn]}, ensure_ascii=False), encoding="utf-8")

    (read,) = read_conversations(path)

    assert read.messages == (turn,)


def test_an_empty_file_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="no conversation"):
        read_conversations(_write(tmp_path))
    with pytest.raises(CorruptFileError, match="cannot be read"):
        read_conversations(tmp_path / "missing.jsonl")
