"""Two renderings are compared: equal, different for a known cause, or different."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packager.errors import PromptRefusedError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Comparison, Render, TokenizerPair, compare
from packager.prompt.conversation import BATTERY, CORE, PREFILLED, TOOLS, Conversation, turns
from packager.prompt.server import server_variables
from tests.prompt.examples import CHATML

TEMPLATE = ChatTemplate(
    "<s>" + CHATML.replace("message.content", "message.content ~ (message.reasoning_content or '')")
    + "{% if tools %}{{ tools | tojson }}{% endif %}",
    "a test", "<s>", "</s>",
)  # fmt: skip


def _compare(render: Render, *conversations: Conversation) -> Comparison:
    return compare(TEMPLATE, conversations or BATTERY, render, "a test")


def test_the_same_prompt_is_equal_with_or_without_its_bos() -> None:
    for render in (
        TEMPLATE.prompt,
        lambda conversation: TEMPLATE.prompt(conversation).removeprefix("<s>"),
    ):
        comparison = _compare(render)
        assert comparison.count("equal") == len(BATTERY)
        assert comparison.failed == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda prompt: prompt + " ",
        lambda prompt: prompt.replace("\n", "", 1),
        lambda prompt: prompt.replace("Hi", "Hi ", 1),
        lambda prompt: "<s>" + prompt,
        lambda prompt: prompt.replace("<|im_start|>", "<|im_start|>system\nx", 1),
        lambda prompt: prompt.upper(),
    ],
)
def test_any_single_change_is_a_failure(change: object) -> None:
    assert callable(change)
    (item,) = _compare(
        lambda conversation: str(change(TEMPLATE.prompt(conversation))), CORE[0]
    ).compared
    assert (item.outcome, item.causes, item.has_failed) == ("different", (), True)


def test_a_known_change_is_named_and_a_further_change_is_a_difference() -> None:
    two = next(
        conversation for conversation in CORE if conversation.name == "two user turns in a row"
    )

    def joined(conversation: Conversation) -> str:
        return TEMPLATE.prompt(replace(conversation, messages=turns("One.\n\nTwo.")))

    (item,) = compare(TEMPLATE, [two], joined, "a test", is_by_template=True).compared
    assert item.outcome == "known_difference"
    assert item.causes == ("the server joins messages of one role in a row",)
    (item,) = _compare(lambda conversation: joined(conversation) + "!", two).compared
    assert (item.outcome, item.causes) == ("different", ())


def test_an_avoidable_difference_in_plain_text_is_a_failure() -> None:
    two = next(
        conversation for conversation in CORE if conversation.name == "two user turns in a row"
    )
    joined = replace(two, messages=turns("One.\n\nTwo."))
    (item,) = _compare(lambda conversation: TEMPLATE.prompt(joined), two).compared
    assert (item.outcome, len(item.causes)) == ("different", 1)
    dated = replace(TEMPLATE, source="{{ date_string or 'no date' }}" + TEMPLATE.source)
    for kind in ("core", "own"):
        conversation = replace(CORE[0], kind=kind)
        prompt = dated.prompt(conversation, server_variables())
        comparison = compare(dated, [conversation], lambda _, prompt=prompt: prompt, "a test")
        assert comparison.failed, kind


def test_a_reordered_tool_schema_is_a_known_difference() -> None:
    def reordered(conversation: Conversation) -> str:
        (tool,) = conversation.tools
        function = dict(tool["function"])  # type: ignore[call-overload]
        parameters = function["parameters"]
        function["parameters"] = {
            key: parameters[key] for key in ("type", "required", "properties")
        }
        return TEMPLATE.prompt(replace(conversation, tools=({**tool, "function": function},)))

    (item,) = _compare(reordered, TOOLS[0]).compared
    assert (item.outcome, item.causes) == (
        "known_difference",
        ("the server rewrites tool schemas",),
    )


def test_several_changes_together_are_a_known_difference() -> None:
    conversation = Conversation(
        "both",
        (
            *turns("One."),
            {"role": "assistant", "content": "Two.", "reasoning_content": "Hm."},
            *turns("Three."),
            *turns("Four."),
        ),
    )

    def both(_: Conversation) -> str:
        return TEMPLATE.prompt(
            replace(conversation, messages=turns("One.", "Two.", "Three.\n\nFour."))
        )

    (item,) = compare(TEMPLATE, [conversation], both, "a test", is_by_template=True).compared
    assert item.outcome == "known_difference"
    assert len(item.causes) == 2


def test_a_refusal_is_a_failure_only_for_plain_text() -> None:
    def refuse(_: Conversation) -> str:
        raise PromptRefusedError("no")

    outcomes = [item.outcome for item in _compare(refuse, CORE[0], PREFILLED[0], TOOLS[0]).compared]
    assert outcomes == ["different", "known_difference", "known_difference"]


def test_conversations_that_the_chat_template_refuses_are_unsupported() -> None:
    refusing = replace(TEMPLATE, source="{{ raise_exception('no') }}")
    comparison = compare(refusing, CORE, lambda conversation: "anything", "a test")
    assert comparison.count("unsupported") == len(CORE)
    assert comparison.failed == ()


def test_different_token_ids_are_a_failure_even_if_the_text_is_equal() -> None:
    def ids(prompt: str) -> list[int]:
        return [ord(character) for character in prompt]

    same = TokenizerPair(ids, ids)
    other = TokenizerPair(ids, lambda prompt: ids(prompt)[1:])
    for tokenizers, failed in ((same, 0), (other, len(CORE))):
        comparison = compare(TEMPLATE, CORE, TEMPLATE.prompt, "a test", tokenizers)
        assert len(comparison.failed) == failed


def test_the_users_own_conversations_count_as_core() -> None:
    own = Conversation("mine", turns("Hi"), "own")
    assert _compare(lambda conversation: "other", own).failed
