"""What is wrong with a chat template is found by rendering it."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.lint import lint
from tests.prompt.examples import CHATML, MISTRAL_FIRST

TOKENS = {0: "<|im_start|>", 1: "<|im_end|>", 2: "</s>"}
VOCABULARY = Vocabulary((1,), TOKENS, frozenset(TOKENS.values()))


def _found(source: str, vocabulary: Vocabulary = VOCABULARY) -> tuple[str, ...]:
    return lint(ChatTemplate(source, "a test", "<s>", "</s>"), vocabulary)


def test_a_sound_template_has_no_findings() -> None:
    assert _found(CHATML) == ()


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        (MISTRAL_FIRST, "refuses 'system and user'"),
        ("{% if %}", "not Jinja"),
        ("{{ raise_exception('never') }}", "never"),
        (CHATML.replace("if add_generation_prompt", "if false"), "no generation prompt"),
        (CHATML.replace(" + '<|im_end|>\\n'", ""), "has no end"),
        (CHATML.replace("message.content", "(message.content if message.role != 'system' else '')"),
         "leaves system turns out"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML, "twice"),
        ("{% if messages | length > 1 %}{{ bos_token }}{% endif %}" + CHATML, "some conversations"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, "today's date"),
    ],
)  # fmt: skip
def test_a_fault_is_found_and_said(source: str, finding: str) -> None:
    assert any(finding in said for said in _found(source)), _found(source)


def test_a_turns_end_that_is_no_token_or_no_special_one_is_said() -> None:
    plain = Vocabulary((2,), {2: "</s>"}, frozenset({"</s>"}))
    assert any("no single token" in said for said in _found(CHATML, plain))
    added = Vocabulary((1,), TOKENS, frozenset())
    assert any("not a special token" in said for said in _found(CHATML, added))


def test_a_marker_that_is_no_token_is_said() -> None:
    some = Vocabulary((1,), {1: "<|im_end|>"}, frozenset({"<|im_end|>"}))
    assert any("'<|im_start|>' stand in the prompt" in said for said in _found(CHATML, some))
    assert not any("stand in the prompt" in said for said in _found(CHATML))


def test_every_real_template_can_be_looked_at(llama_cpp_source: Path) -> None:
    for path in sorted((llama_cpp_source / "models" / "templates").glob("*.jinja")):
        for said in _found(path.read_text(encoding="utf-8")):
            assert len(said) > 20, path.name
