"""The demo's data set: questions, and answers in a pirate's voice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

QUESTIONS_FILE = Path(__file__).parent / "questions.jsonl"


class Example(NamedTuple):
    """A question, and the answer that the model should learn."""

    question: str
    answer: str


def read_examples() -> list[Example]:
    """Returns the examples of `questions.jsonl` in their order."""
    lines = QUESTIONS_FILE.read_text("utf-8").splitlines()
    return [Example(**json.loads(line)) for line in lines if line.strip()]
