"""A GGUF's vocabulary makes the training token ids from texts of every kind."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.gguf.quants import QUANTS
from packager.gguf.types import write_skeleton
from packager.package.prepare import prepare
from packager.package.request import BuildOptions, Request
from packager.prompt.comparison import TokenizerPair
from packager.source.source_options import SourceOptions
from packager.verify.corpus import CORPUS, compare_vocabulary
from packager.verify.renderers import compare_gguf


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_different_token_ids_are_a_failure_that_names_the_text() -> None:
    def without_digits(text: str) -> list[int]:
        return [number for number in ids(text) if not chr(number).isdigit()]

    comparison = compare_vocabulary(TokenizerPair(ids, without_digits))
    assert "digits" in {item.conversation.name for item in comparison.failed}
    assert "Greek" not in {item.conversation.name for item in comparison.failed}


def test_a_tokenizer_that_composes_letters_is_a_known_difference() -> None:
    def composing(text: str) -> list[int]:
        return ids(unicodedata.normalize("NFC", text))

    comparison = compare_vocabulary(TokenizerPair(composing, ids))
    known = {
        item.conversation.name for item in comparison.compared if item.outcome == "known_difference"
    }
    assert known == {name for name, text in CORPUS.items() if ids(text) != composing(text)}
    assert comparison.failed == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "phi3", "gpt2"])
def test_each_kind_of_vocabulary_makes_the_training_token_ids(
    kind: str, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = SourceOptions(str(small_model(kind)))
    request = Request(source=source, build=BuildOptions(quants=(QUANTS["Q8_0"],)))
    package = prepare(request, tmp_path)
    gguf = tmp_path / "vocabulary.gguf"
    write_skeleton(gguf, package.text)
    comparison = compare_gguf(
        package.prompt.chat_template, package.inputs.files, gguf, (), tmp_path
    )
    assert comparison.prompts.compared == ()
    assert comparison.vocabulary.failed == ()
    assert comparison.vocabulary.count("equal") >= len(CORPUS) - 1
