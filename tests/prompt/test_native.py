"""The GGUF's chat template sets only the variables that it needs to render as in training."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import BATTERY, CORE, TOOLS
from packager.prompt.native import PADDING, make_native
from packager.prompt.server import as_native_server
from tests.prompt.examples import CHATML

_THINKS = "{% if enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"


def _native(source: str, **variables: object) -> dict[str, str]:
    chat_template = ChatTemplate(source, "a test", "<s>", "</s>", variables=variables)
    return dict(make_native(chat_template).pins)


def test_a_variable_that_the_chat_template_ignores_is_not_pinned() -> None:
    assert _native(CHATML) == {}


@pytest.mark.parametrize(
    ("addition", "pins"),
    [
        (_THINKS, {"enable_thinking": "false"}),
        # Undefined and true are the same here, as for Qwen3, so clients keep the choice.
        ("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
         {}),
        # Only none is neither true nor false.
        ("{% if enable_thinking is true %}a<think>{% elif enable_thinking is false %}b</think>"
         "{% endif %}", {"enable_thinking": "none"}),
        ("{% if not date_string is defined %}{% set date_string = '26 \\\"Jul\\\" 2024' %}"
         "{% endif %}{{ date_string }}", {"date_string": '"26 \\"Jul\\" 2024"'}),
        ("{% if clear_thinking is defined and not clear_thinking %}x{% endif %}",
         {"clear_thinking": "true"}),
    ],
)  # fmt: skip
def test_the_smallest_set_of_pins_that_makes_prompts_equal(
    addition: str, pins: dict[str, str]
) -> None:
    source = CHATML + addition
    result = _native(source)
    if "clear_thinking" in pins:  # any value that has the effect of an undefined variable
        assert list(result) == ["clear_thinking"]
    else:
        assert result == pins


def test_two_variables_are_pinned_if_one_is_not_enough() -> None:
    source = CHATML + _THINKS + "{% if preserve_thinking %}x{% endif %}"
    assert set(_native(source)) == {"enable_thinking", "preserve_thinking"}


def test_training_with_thinking_on_needs_no_pin_if_the_server_thinks_by_default() -> None:
    assert _native(CHATML + _THINKS, enable_thinking=True) == {}
    assert _native(CHATML + _THINKS, enable_thinking=False) == {"enable_thinking": "false"}


def test_thinking_that_ollama_does_not_recognise_is_pinned_for_both_values() -> None:
    source = CHATML + "{% if enable_thinking %}[think]{% endif %}"
    assert _native(source, enable_thinking=True) == {"enable_thinking": "true"}
    assert _native(source) == {"enable_thinking": "false"}


def test_pins_and_padding_render_nothing() -> None:
    chat_template = ChatTemplate("\n" + CHATML + _THINKS, "a test", "<s>", "</s>")
    native = make_native(chat_template)
    assert native.gguf_chat_template.startswith(PADDING + "{% set enable_thinking = false %}\n\n")
    for conversation in CORE:
        assert native.chat_template.prompt(conversation) == chat_template.prompt(conversation)


@pytest.mark.parametrize("name", ["StepFun3.5-Flash", "google-gemma-4-31B-it-interleaved"])
def test_phrases_that_make_a_server_change_messages_are_hidden_from_it(
    name: str, llama_cpp_source: Path
) -> None:
    source = (llama_cpp_source / "models" / "templates" / f"{name}.jinja").read_text()
    chat_template = ChatTemplate(source, name, "<s>", "</s>")
    native = make_native(chat_template)
    assert native.notes
    assert "following functions in JSONSchema" not in native.chat_template.source
    unpinned = {name: value == "true" for name, value in native.pins.items()}
    for conversation in BATTERY:
        if conversation.thinking is None:
            expected = chat_template.prompt(conversation, unpinned)
            assert native.chat_template.prompt(conversation) == expected, conversation.name


def test_the_keys_of_tools_are_put_back_into_their_training_order() -> None:
    with_tools = (
        "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}" + CHATML
    )
    chat_template = ChatTemplate(with_tools, "a test", "<s>", "</s>")
    native = make_native(chat_template)
    offered, limited = TOOLS[0], TOOLS[2]
    assert native.chat_template.prompt(as_native_server(offered)) == chat_template.prompt(offered)
    assert chat_template.prompt(as_native_server(offered)) != chat_template.prompt(offered)
    # What the server has omitted cannot be restored.
    assert native.chat_template.prompt(as_native_server(limited)) != chat_template.prompt(limited)
    assert make_native(ChatTemplate(CHATML, "a test", "<s>", "</s>")).notes == ()


def test_differences_that_no_pin_can_avoid_are_listed() -> None:
    # No value has the effect of an undefined variable.
    source = CHATML + "{% if enable_thinking is defined %}never{% endif %}"
    native = make_native(ChatTemplate(source, "a test", "<s>", "</s>"))
    assert native.differences == tuple(conversation.name for conversation in CORE)
