"""Ollama templates (Go) render as in Ollama, and as the training chat templates."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.errors import ChatTemplateError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import compare
from packager.prompt.conversation import CORE, PREFILLED, Conversation, Messages, turns
from packager.prompt.go.derive import derive_ollama_templates, quoted
from packager.prompt.go.families import find_ollama_template, known_templates
from packager.prompt.go.render import render_go_template
from tests.prompt.examples import ALPACA, EXAMPLES, LLAMA4, PHI4, VICUNA
from tests.prompt.oracle import GoOracle, build_oracle
from tests.prompt.sweep import templates

COMPARED = (*CORE, *PREFILLED)
# Unusual ones that the server accepts: roles in any order and any case.
ODD: tuple[Messages, ...] = (
    (*turns("One"), *turns("Two", " padded \n"), *turns("Three")),
    ({"role": "assistant", "content": "First"}, *turns("Then")),
    ({"role": "System", "content": "S"}, {"role": "USER", "content": "U"}),
    ({"role": "system", "content": "A"}, {"role": "system", "content": "B"}),
    ({"role": "tool", "content": "21"}, {"role": "tool", "content": "22"}),
)

# The source of each family's chat template: Ollama's list, the toolchain, or the examples.
OLLAMA, TOOLCHAIN, EXAMPLE = "ollama", "toolchain", "example"
FAMILIES = {
    "alfred": (OLLAMA, "alfred"),
    "alpaca": (EXAMPLE, ALPACA),
    "chatml": (TOOLCHAIN, "Qwen-Qwen2.5-7B-Instruct"),
    "chatqa": (OLLAMA, "chatqa"),
    "codellama": (OLLAMA, "codellama-70b-instruct"),
    "commandr": (OLLAMA, "command-r"),
    "deepseek": (TOOLCHAIN, "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"),
    "falcon": (OLLAMA, "falcon-instruct"),
    "gemma": (TOOLCHAIN, "google-gemma-2-2b-it"),
    "gemma4": (TOOLCHAIN, "google-gemma-4-31B-it"),
    "glm": (TOOLCHAIN, "GLM-4.7-Flash"),
    "granite": (OLLAMA, "granite-instruct"),
    "kimi": (TOOLCHAIN, "moonshotai-Kimi-K2"),
    "lfm2": (TOOLCHAIN, "LFM2-8B-A1B"),
    "llama2": (OLLAMA, "llama2-chat"),
    "llama3": (TOOLCHAIN, "meta-llama-Llama-3.1-8B-Instruct"),
    "llama4": (EXAMPLE, LLAMA4),
    "magicoder": (OLLAMA, "magicoder"),
    "minimax": (TOOLCHAIN, "MiniMax-M2"),
    "mistral": (TOOLCHAIN, "mistralai-Ministral-3-14B-Reasoning-2512"),
    "nemotron": (TOOLCHAIN, "NVIDIA-Nemotron-Nano-v2"),
    "openchat": (OLLAMA, "openchat"),
    "phi3": (TOOLCHAIN, "microsoft-Phi-3.5-mini-instruct"),
    "phi4": (EXAMPLE, PHI4),
    "reka": (TOOLCHAIN, "Reka-Edge"),
    "solar": (OLLAMA, "solar-instruct"),
    "starcoder2": (OLLAMA, "starcoder2-instruct"),
    "vicuna": (EXAMPLE, VICUNA),
    "zephyr": (OLLAMA, "zephyr"),
}


@pytest.fixture(scope="module")
def oracle() -> GoOracle:
    return build_oracle()


@cache
def ollamas_templates() -> dict[str, str]:
    """The chat templates that Ollama knows by name, the first of each name."""
    version = (Path(__file__).parents[3] / "scripts" / "install-ollama").read_text("utf-8")
    (number,) = [line[8:] for line in version.splitlines() if line.startswith("version=")]
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"github.com/ollama/ollama@v{number}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    index = Path(json.loads(done.stdout)["Dir"]) / "template" / "index.json"
    sources: dict[str, str] = {}
    for entry in json.loads(index.read_text(encoding="utf-8")):
        sources.setdefault(entry["name"], entry["template"])
    return sources


def chat_template_of(family: str, llama_cpp_source: Path) -> ChatTemplate:
    place, name = FAMILIES[family]
    if place == OLLAMA:
        source = ollamas_templates()[name]
    elif place == TOOLCHAIN:
        path = llama_cpp_source / "models" / "templates" / f"{name}.jinja"
        source = path.read_text(encoding="utf-8")
    else:
        source = name
    return ChatTemplate(source, family, "<s>", "</s>")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_renders_the_prompts_of_its_chat_template_here_and_in_go(
    family: str, oracle: GoOracle, llama_cpp_source: Path
) -> None:
    chat_template = chat_template_of(family, llama_cpp_source)
    ollama_template = find_ollama_template(chat_template)
    assert ollama_template is not None
    assert ollama_template.family == family
    assert ollama_template.comparison.failed == ()

    def render(conversation: Conversation) -> str:
        (rendered,) = oracle.render([(ollama_template.source, conversation.messages)])
        assert not rendered.error
        return rendered.prompt

    in_go = compare(chat_template, COMPARED, render, "Go", is_by_template=True)
    assert in_go.failed == ()
    assert [item.rendered for item in in_go.compared] == [
        item.rendered for item in ollama_template.comparison.compared
    ]
    # Every supported core conversation is equal, except where Ollama changes messages for any
    # TEMPLATE; most conversations are not affected.
    equal = sum(i.outcome == "equal" for i in in_go.compared if i.conversation.kind == "core")
    supported = sum(
        i.outcome != "unsupported" for i in in_go.compared if i.conversation.kind == "core"
    )
    assert equal >= supported / 2


def test_there_are_twenty_families_and_each_file_belongs_to_one() -> None:
    assert len(FAMILIES) >= 20
    assert {name.partition("-")[0] for name in known_templates()} == set(FAMILIES)


@pytest.mark.parametrize("name", list(known_templates()))
def test_go_renders_each_known_template_as_ftpack_does(name: str, oracle: GoOracle) -> None:
    source = known_templates()[name]
    conversations = [conversation.messages for conversation in COMPARED] + list(ODD)
    in_go = oracle.render([(source, messages) for messages in conversations])
    assert [rendered.error for rendered in in_go] == [""] * len(conversations)
    assert [rendered.prompt for rendered in in_go] == [
        render_go_template(source, messages) for messages in conversations
    ]


@pytest.mark.parametrize("name", list(known_templates()))
def test_no_template_begins_with_a_bos_or_claims_tools(name: str) -> None:
    source = known_templates()[name]
    for text in ("<bos>", "begin_of_text", ".Tools", ".Thinking", ".Suffix"):
        assert text not in source
    assert not render_go_template(source, turns("Hi")).startswith("<s>")


def test_most_real_chat_templates_have_an_ollama_template_and_go_agrees(
    oracle: GoOracle, llama_cpp_source: Path
) -> None:
    count = 0
    for path in templates(llama_cpp_source):
        chat_template = ChatTemplate(path.read_text("utf-8"), path.stem, "<s>", "</s>")
        for source in derive_ollama_templates(chat_template):
            in_go = oracle.render([(source, conversation.messages) for conversation in COMPARED])
            here = [render_go_template(source, conversation.messages) for conversation in COMPARED]
            assert [rendered.prompt for rendered in in_go] == here, path.stem
        try:
            count += find_ollama_template(chat_template) is not None
        except ChatTemplateError:
            continue
    assert count >= 50


@pytest.mark.parametrize("example", list(EXAMPLES))
def test_the_examples_have_a_template(example: str) -> None:
    assert find_ollama_template(EXAMPLES[example].chat_template) is not None


@pytest.mark.parametrize(
    "text", ["{{ .Prompt }}", '"\\', "a\nb\tc\rd", "\u200b\ufeff\U0001f642", "{{", "}}", ""]
)
def test_a_quoted_text_is_that_text_in_go_and_fits_into_a_modelfile(
    text: str, oracle: GoOracle
) -> None:
    source = "{{ range .Messages }}{{ end }}{{ " + quoted(text) + " }}"
    (rendered,) = oracle.render([(source, turns("x"))])
    assert (rendered.prompt, rendered.error) == (text, "")
    assert render_go_template(source, turns("x")) == text
    assert source.isprintable()


# Templates of the grammar that ftpack evaluates, nested a few levels deep.
_TEXTS = st.sampled_from(["a", " ", "\n", " b \n", "<|x|>", "{", "}", "é🙂", '"'])
_VALUES = st.sampled_from(
    [
        ".System", "$.System", ".Role", ".Content", '"s"', '"a\\n\\"b"', "`raw\\n`", "1", "-2",
        "0", "true", "false", "$i", "$m.Role", "(len .Content)", "(len $.Messages)", '""',
        '(eq .Role "user")', "(and .Content .Role)", '(or .Content "x")', "(not .Content)",
        "(index $.Messages 0)", "(slice $.Messages 1)", "$.Messages", ".Response", ".Tools",
        "(print 1 2)", '(printf "%s|%d" .Role 3)', "(lt 1 2)", "(ne .Role .Content)", "nil", ".",
    ]
)  # fmt: skip
_OPEN, _CLOSE = st.sampled_from(["{{", "{{-"]), st.sampled_from(["}}", "-}}"])


def _action(inside: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda o, text, c: f"{o} {text} {c}", _OPEN, inside, _CLOSE)


def _block(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    head = st.one_of(
        st.builds("if {}".format, _VALUES),
        st.builds("with {}".format, _VALUES),
        st.builds('if eq {} {}'.format, _VALUES, _VALUES),
        st.sampled_from(
            ["range .Messages", "range $.Messages", "range $i, $m := .Messages",
             "range $i, $m := $.Messages", "range $m := $.Messages", "range .Tools"]
        ),
    )  # fmt: skip
    middle = st.one_of(
        st.just(""),
        st.builds(lambda o, c, text: f"{o} else {c}{text}", _OPEN, _CLOSE, body),
        st.builds(lambda o, v, c, text: f"{o} else if {v} {c}{text}", _OPEN, _VALUES, _CLOSE, body),
    )
    return st.builds(
        lambda opened, text, other, o, c: f"{opened}{text}{other}{o} end {c}",
        _action(head), body, middle, _OPEN, _CLOSE,
    )  # fmt: skip


_PIECES = st.one_of(
    _TEXTS,
    _action(_VALUES),
    _action(st.builds("$x := {}".format, _VALUES)),
    _action(st.builds("{} | len".format, _VALUES)),
    st.sampled_from(["{{ break }}", "{{ continue }}", "{{/* a comment */}}", "{{- /* b */ -}}"]),
)
_TEMPLATES = st.recursive(
    st.lists(_PIECES, max_size=4).map("".join),
    lambda inner: st.lists(st.one_of(_PIECES, _block(inner)), min_size=1, max_size=4).map("".join),
    max_leaves=8,
)
_CONVERSATIONS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.sampled_from(["", "Hi", " a \n", "{{ x }}", "é"]),
    ),
    max_size=5,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TEMPLATES, _CONVERSATIONS)
def test_a_template_that_ftpack_evaluates_renders_the_same_in_go(
    source: str, messages: list[dict[str, str]]
) -> None:
    for template in (source, "{{ range .Messages }}" + source + "{{ end }}"):
        try:
            here = render_go_template(template, messages)
        except ChatTemplateError:
            continue  # ftpack refuses what it does not evaluate
        (in_go,) = build_oracle().render([(template, messages)])
        assert (in_go.error, in_go.prompt) == ("", here)


def test_enough_of_the_random_templates_are_evaluated() -> None:
    rendered = []

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(_TEMPLATES, _CONVERSATIONS)
    def count(source: str, messages: list[dict[str, str]]) -> None:
        try:
            rendered.append(render_go_template(source, messages))
        except ChatTemplateError:
            rendered.append(None)

    count()
    assert sum(prompt is not None for prompt in rendered) >= len(rendered) / 4
