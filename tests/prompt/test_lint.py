"""Faults of a chat template are found by rendering it."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.lint import lint
from tests.prompt.examples import CHATML, MISTRAL_FIRST

TOKENS = {0: "<|im_start|>", 1: "<|im_end|>", 2: "</s>"}
VOCABULARY = Vocabulary((1,), TOKENS, frozenset(TOKENS.values()))


def _findings(source: str, vocabulary: Vocabulary = VOCABULARY) -> tuple[str, ...]:
    return lint(ChatTemplate(source, "a test", "<s>", "</s>"), vocabulary)


def test_a_good_chat_template_has_no_findings() -> None:
    assert _findings(CHATML) == ()


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        (MISTRAL_FIRST, "refuses 'system and user'"),
        ("{% if %}", "not valid Jinja"),
        ("{{ raise_exception('never') }}", "never"),
        (CHATML.replace("if add_generation_prompt", "if false"), "no generation prompt"),
        (CHATML.replace(" + '<|im_end|>\\n'", ""), "no end marker"),
        (CHATML.replace("message.content", "(message.content if message.role != 'system' else '')"),
         "omits system turns"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML, "twice"),
        ("{% if messages | length > 1 %}{{ bos_token }}{% endif %}" + CHATML, "some conversations"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, "today's date"),
    ],
)  # fmt: skip
def test_each_fault_is_a_finding(source: str, finding: str) -> None:
    assert any(finding in finding for finding in _findings(source)), _findings(source)


def test_an_end_marker_that_is_not_a_special_token_is_a_finding() -> None:
    plain = Vocabulary((2,), {2: "</s>"}, frozenset({"</s>"}))
    assert any("not a single token" in finding for finding in _findings(CHATML, plain))
    added = Vocabulary((1,), TOKENS, frozenset())
    assert any("not a special token" in finding for finding in _findings(CHATML, added))


def test_a_marker_that_is_not_a_token_is_a_finding() -> None:
    some = Vocabulary((1,), {1: "<|im_end|>"}, frozenset({"<|im_end|>"}))
    assert any(
        "'<|im_start|>', which are not tokens" in finding for finding in _findings(CHATML, some)
    )
    assert not any("not tokens" in finding for finding in _findings(CHATML))


def test_every_real_chat_template_can_be_linted(llama_cpp_source: Path) -> None:
    for path in sorted((llama_cpp_source / "models" / "templates").glob("*.jinja")):
        for finding in _findings(path.read_text(encoding="utf-8")):
            assert len(finding) > 20, path.name
