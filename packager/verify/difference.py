"""Two renderings of a conversation for people, with visible white space and differences."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from itertools import zip_longest

_VISIBLE = str.maketrans({"\t": "→", "\r": "␍", "\u00a0": "⍽", "\u200b": "⍽", "\ufeff": "⍽"})


def visible(text: str) -> list[str]:
    """The lines of a text; each line end is written as `⏎`, and spaces at its ends as `·`."""
    lines = text.split("\n")
    ended = [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    return [_visible_line(line) for line in ended]


def _visible_line(line: str) -> str:
    end = "⏎" if line.endswith("\n") else ""
    text = line.removesuffix("\n")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    after = len(text) - before - len(inner)
    return ("·" * before + inner + "·" * after).translate(_VISIBLE) + end


def differing_lines(expected: str, rendered: str) -> list[str]:
    """A unified diff, with `-` for training, `+` for the server, and two lines of context."""
    diff = difflib.unified_diff(
        visible(expected), visible(rendered), "training", "server", n=2, lineterm=""
    )
    return list(diff)


def side_by_side(expected: str, rendered: str, width: int) -> list[str]:
    """Both renderings in columns, with a `|` between lines that differ.

    Args:
        expected: the training prompt.
        rendered: the other prompt.
        width: the total width in characters.
    """
    column = max(10, (width - 3) // 2)
    return [
        f"{left:<{column}} {mark} {right}".rstrip()
        for left, right, mark in _columns(visible(expected), visible(rendered), column)
    ]


def _columns(left: list[str], right: list[str], column: int) -> Iterator[tuple[str, str, str]]:
    matcher = difflib.SequenceMatcher(a=left, b=right, autojunk=False)
    for kind, from_left, to_left, from_right, to_right in matcher.get_opcodes():
        pairs = zip_longest(left[from_left:to_left], right[from_right:to_right], fillvalue="")
        for one, other in pairs:
            mark = " " if kind == "equal" else "|"
            for row in zip_longest(_wrap(one, column), _wrap(other, column), fillvalue=""):
                yield *row, mark


def _wrap(line: str, column: int) -> list[str]:
    return textwrap.wrap(line, column, drop_whitespace=False, replace_whitespace=False) or [""]
