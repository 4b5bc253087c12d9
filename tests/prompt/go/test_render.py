"""Ollama templates (Go) render as in Ollama.

Ollama's own `template` package (0.32.15) wrote the expected prompts in `ollama_prompts.json` for
the same templates and messages (`roles`: s for system, u for user, a for assistant).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from packager.errors import ChatTemplateError
from packager.prompt.go.render import render_go_template

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("ollama_prompts.json").read_text("utf-8"))


def test_a_template_renders_as_in_ollama() -> None:
    for case in GOLDEN:
        prompt = render_go_template(case["template"], _messages(case["roles"]))
        assert prompt == case["prompt"], case


@pytest.mark.parametrize(
    "source",
    [
        "{{ .Messages",
        "{{ if .Messages }}x",
        "{{ end }}",
        "{{ else }}",
        "{{ }}",
        "{{ (.System }}{{ .Messages | len }}",
        "{{ /* a comment that is none */ }}{{ .Response }}",
        '{{ "\\q" }}{{ .Response }}',
        "{{ $undeclared }}{{ .Response }}",
        "{{ $undeclared = 1 }}{{ .Response }}",
        '{{ eq 1 "a" }}{{ .Response }}',
        "{{ index .Messages 9 }}",
        '{{ slice "abc" 2 9 }}{{ .Response }}',
        '{{ define "x" }}{{ end }}',
    ],
)
def test_a_template_that_ollama_refuses_is_an_error(source: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render_go_template(source, _messages("u"))
    assert "Ollama (Go) template" in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize("source", ["{{ .Unheard }}{{ .Response }}", "{{ json .Messages }}"])
def test_syntax_that_only_ollama_evaluates_is_an_error(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="does not evaluate"):
        render_go_template(source, _messages("u"))


def _messages(roles: str) -> list[Mapping[str, str]]:
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names[role], "content": f"{role}{at}é"} for at, role in enumerate(roles)]
