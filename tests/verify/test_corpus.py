"""A GGUF's vocabulary makes the ids of training, of texts of every kind."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.prompt.comparison import TokenizedBy
from packager.verify.corpus import CORPUS, compare_vocabulary
from packager.verify.renderers import compare_gguf


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_other_ids_are_a_failure_and_name_the_text() -> None:
    def without_digits(text: str) -> list[int]:
        return [number for number in ids(text) if not chr(number).isdigit()]

    comparison = compare_vocabulary(TokenizedBy(ids, without_digits))
    assert "digits" in {item.conversation.name for item in comparison.failed}
    assert "Greek" not in {item.conversation.name for item in comparison.failed}


def test_a_tokenizer_that_composes_letters_is_declared() -> None:
    def composing(text: str) -> list[int]:
        return ids(unicodedata.normalize("NFC", text))

    comparison = compare_vocabulary(TokenizedBy(composing, ids))
    declared = {
        item.conversation.name for item in comparison.compared if item.outcome == "known_difference"
    }
    assert declared == {name for name, text in CORPUS.items() if ids(text) != composing(text)}
    assert comparison.failed == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "phi3", "gpt2"])
def test_the_vocabulary_of_each_kind_is_that_of_training(
    kind: str, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    from packager.gguf.types import write_skeleton

    package = prepare(Request(str(small_model(kind)), ("Q8_0",)))
    gguf = tmp_path / "vocabulary.gguf"
    write_skeleton(gguf, package.conversion)
    embedded, vocabulary = compare_gguf(package, gguf, ())
    assert embedded.compared == ()
    assert vocabulary.failed == ()
    equal = vocabulary.count("equal")
    assert equal >= len(CORPUS) - 1
