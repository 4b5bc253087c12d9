"""A chat template in a GGUF is pinned to what it was in training, and to nothing more."""

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


def test_what_a_server_defines_and_the_template_ignores_is_not_pinned() -> None:
    assert _native(CHATML) == {}


@pytest.mark.parametrize(
    ("addition", "pins"),
    [
        (_THINKS, {"enable_thinking": "false"}),
        # Undefined and true are the same here, as with Qwen3: clients keep the choice.
        ("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
         {}),
        # Only what is set to none is neither true nor false.
        ("{% if enable_thinking is true %}a<think>{% elif enable_thinking is false %}b</think>"
         "{% endif %}", {"enable_thinking": "none"}),
        ("{% if not date_string is defined %}{% set date_string = '26 \\\"Jul\\\" 2024' %}"
         "{% endif %}{{ date_string }}", {"date_string": '"26 \\"Jul\\" 2024"'}),
        ("{% if clear_thinking is defined and not clear_thinking %}x{% endif %}",
         {"clear_thinking": "true"}),
    ],
)  # fmt: skip
def test_the_smallest_set_of_pins_makes_it_equal(addition: str, pins: dict[str, str]) -> None:
    source = CHATML + addition
    found = _native(source)
    if "clear_thinking" in pins:  # whichever of its values is as if it were not there
        assert list(found) == ["clear_thinking"]
    else:
        assert found == pins


def test_two_variables_are_pinned_where_one_is_not_enough() -> None:
    source = CHATML + _THINKS + "{% if preserve_thinking %}x{% endif %}"
    assert set(_native(source)) == {"enable_thinking", "preserve_thinking"}


def test_training_with_thinking_on_needs_no_pin_where_the_server_thinks_by_default() -> None:
    assert _native(CHATML + _THINKS, enable_thinking=True) == {}
    assert _native(CHATML + _THINKS, enable_thinking=False) == {"enable_thinking": "false"}


def test_a_template_whose_thinking_ollama_does_not_see_is_pinned_for_both_values() -> None:
    source = CHATML + "{% if enable_thinking %}[think]{% endif %}"
    assert _native(source, enable_thinking=True) == {"enable_thinking": "true"}
    assert _native(source) == {"enable_thinking": "false"}


def test_the_pins_and_the_padding_render_as_nothing() -> None:
    chat_template = ChatTemplate("\n" + CHATML + _THINKS, "a test", "<s>", "</s>")
    native = make_native(chat_template)
    assert native.gguf_chat_template.startswith(PADDING + "{% set enable_thinking = false %}\n\n")
    for conversation in CORE:
        assert native.chat_template.prompt(conversation) == chat_template.prompt(conversation)


@pytest.mark.parametrize("name", ["StepFun3.5-Flash", "google-gemma-4-31B-it-interleaved"])
def test_what_makes_a_server_change_messages_is_taken_out_of_its_sight(
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


def test_tools_are_put_back_into_the_order_of_training_where_the_template_writes_them() -> None:
    with_tools = (
        "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}" + CHATML
    )
    chat_template = ChatTemplate(with_tools, "a test", "<s>", "</s>")
    native = make_native(chat_template)
    offered, limited = TOOLS[0], TOOLS[2]
    assert native.chat_template.prompt(as_native_server(offered)) == chat_template.prompt(offered)
    assert chat_template.prompt(as_native_server(offered)) != chat_template.prompt(offered)
    # What the server has left out cannot be put back.
    assert native.chat_template.prompt(as_native_server(limited)) != chat_template.prompt(limited)
    assert make_native(ChatTemplate(CHATML, "a test", "<s>", "</s>")).notes == ()


def test_a_template_that_no_pin_mends_says_what_differs() -> None:
    # Neither true, nor false, nor none, nor anything that the template sets itself.
    source = CHATML + "{% if enable_thinking is defined %}never{% endif %}"
    native = make_native(ChatTemplate(source, "a test", "<s>", "</s>"))
    assert native.differing == tuple(conversation.name for conversation in CORE)
