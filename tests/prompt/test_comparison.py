"""Two renderings are held against each other: equal, explained, or different."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packager.errors import PromptRefusedError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Proof, Render, TokenizedBy, prove
from packager.prompt.conversation import BATTERY, CORE, PREFILLED, TOOLS, Conversation, conversation
from packager.prompt.server import server_variables
from tests.prompt.examples import CHATML

TEMPLATE = ChatTemplate(
    "<s>" + CHATML.replace("message.content", "message.content ~ (message.reasoning_content or '')")
    + "{% if tools %}{{ tools | tojson }}{% endif %}",
    "a test", "<s>", "</s>",
)  # fmt: skip


def _proof(render: Render, *conversations: Conversation) -> Proof:
    return prove(TEMPLATE, conversations or BATTERY, render, "a test")


def test_the_same_renderer_is_equal_with_or_without_its_bos() -> None:
    for render in (TEMPLATE.prompt, lambda tried: TEMPLATE.prompt(tried).removeprefix("<s>")):
        proof = _proof(render)
        assert proof.count("equal") == len(BATTERY)
        assert proof.failed == ()


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
def test_a_change_of_one_place_is_a_failure(change: object) -> None:
    assert callable(change)
    (item,) = _proof(lambda tried: str(change(TEMPLATE.prompt(tried))), CORE[0]).compared
    assert (item.outcome, item.causes, item.has_failed) == ("different", (), True)


def test_a_known_change_is_declared_by_name_and_a_further_one_is_not() -> None:
    two = next(tried for tried in CORE if tried.name == "two user turns in a row")

    def joined(tried: Conversation) -> str:
        return TEMPLATE.prompt(replace(tried, messages=conversation("One.\n\nTwo.")))

    (item,) = prove(TEMPLATE, [two], joined, "a test", is_by_template=True).compared
    assert item.outcome == "declared"
    assert item.causes == ("messages of one role in a row are joined",)
    (item,) = _proof(lambda tried: joined(tried) + "!", two).compared
    assert (item.outcome, item.causes) == ("different", ())


def test_plain_text_that_differs_for_a_cause_that_can_be_mended_is_a_failure() -> None:
    two = next(tried for tried in CORE if tried.name == "two user turns in a row")
    joined = replace(two, messages=conversation("One.\n\nTwo."))
    (item,) = _proof(lambda tried: TEMPLATE.prompt(joined), two).compared
    assert (item.outcome, len(item.causes)) == ("different", 1)
    dated = replace(TEMPLATE, source="{{ date_string or 'no date' }}" + TEMPLATE.source)
    for kind in ("core", "own"):
        tried = replace(CORE[0], kind=kind)
        told = dated.prompt(tried, server_variables())
        proof = prove(dated, [tried], lambda _, told=told: told, "a test")
        assert proof.failed, kind


def test_schemas_in_another_order_of_keys_are_explained() -> None:
    def reordered(tried: Conversation) -> str:
        (tool,) = tried.tools
        function = dict(tool["function"])  # type: ignore[call-overload]
        parameters = function["parameters"]
        function["parameters"] = {
            key: parameters[key] for key in ("type", "required", "properties")
        }
        return TEMPLATE.prompt(replace(tried, tools=({**tool, "function": function},)))

    (item,) = _proof(reordered, TOOLS[0]).compared
    assert (item.outcome, item.causes) == ("declared", ("the server writes tool schemas anew",))


def test_several_changes_together_are_explained() -> None:
    tried = Conversation(
        "both",
        (
            *conversation("One."),
            {"role": "assistant", "content": "Two.", "reasoning_content": "Hm."},
            *conversation("Three."),
            *conversation("Four."),
        ),
    )

    def both(_: Conversation) -> str:
        return TEMPLATE.prompt(
            replace(tried, messages=conversation("One.", "Two.", "Three.\n\nFour."))
        )

    (item,) = prove(TEMPLATE, [tried], both, "a test", is_by_template=True).compared
    assert item.outcome == "declared"
    assert len(item.causes) == 2


def test_a_refusal_is_a_failure_only_where_plain_text_is_refused() -> None:
    def refuse(_: Conversation) -> str:
        raise PromptRefusedError("no")

    outcomes = [item.outcome for item in _proof(refuse, CORE[0], PREFILLED[0], TOOLS[0]).compared]
    assert outcomes == ["different", "declared", "declared"]


def test_what_the_chat_template_refuses_is_not_compared() -> None:
    refusing = replace(TEMPLATE, source="{{ raise_exception('no') }}")
    proof = prove(refusing, CORE, lambda tried: "anything", "a test")
    assert proof.count("not taken") == len(CORE)
    assert proof.failed == ()


def test_other_ids_are_a_failure_though_the_text_is_equal() -> None:
    def ids(prompt: str) -> list[int]:
        return [ord(character) for character in prompt]

    same = TokenizedBy(ids, ids)
    other = TokenizedBy(ids, lambda prompt: ids(prompt)[1:])
    for tokenized_by, failed in ((same, 0), (other, len(CORE))):
        proof = prove(TEMPLATE, CORE, TEMPLATE.prompt, "a test", tokenized_by)
        assert len(proof.failed) == failed


def test_the_users_own_conversations_count_as_core() -> None:
    own = Conversation("mine", conversation("Hi"), "own")
    assert _proof(lambda tried: "other", own).failed
