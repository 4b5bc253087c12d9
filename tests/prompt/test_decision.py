"""What a chat template renders decides who renders in Ollama, and what ends an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from packager.errors import ChatTemplateError
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import turns
from packager.prompt.decision import decide
from packager.prompt.go.families import find_ollama_template
from packager.prompt.go.render import render_go_template
from packager.prompt.ollama_version import NEWEST_KNOWN
from tests.prompt.examples import CHATML, EXAMPLES, MISTRAL_FIRST, PHI4, Example, make_example

NEWEST = str(NEWEST_KNOWN)
TURNS = {0: "<|im_start|>", 1: "<|im_end|>", 2: "</s>"}
PHI4_EXAMPLE = make_example(PHI4, TURNS, [1])


@pytest.mark.parametrize("family", list(EXAMPLES))
def test_each_family_is_recognised_by_its_prompts(family: str) -> None:
    decision = EXAMPLES[family].decide()
    assert (decision.renderer, decision.family) == ("TEMPLATE", family)
    assert f"TEMPLATE of the {family} family" in decision.reason


@pytest.mark.parametrize("example", [*EXAMPLES.values(), PHI4_EXAMPLE])
def test_the_ollama_template_renders_the_training_prompts(example: Example) -> None:
    ollama_template = example.decide().ollama_template
    assert ollama_template is not None
    chat_template = example.chat_template
    for messages in (
        turns("Hi"),
        turns("Hi", system="S"),
        turns("Hi", "A\nA", "{{ B }}", '"""', "C"),
        turns("Hi", "A", "B", system="S\n\nT"),
    ):
        expected = chat_template.render(messages, add_generation_prompt=True)
        expected = expected.removeprefix(chat_template.bos_token or "")
        assert render_go_template(ollama_template, messages) == expected


@pytest.mark.parametrize(
    ("name", "family"),
    [("google-gemma-2-2b-it", "gemma"), ("microsoft-Phi-3.5-mini-instruct", "phi3")],
)
def test_published_chat_templates_are_recognised(
    name: str, family: str, llama_cpp_source: Path
) -> None:
    ollama_template = find_ollama_template(_published(name, llama_cpp_source))
    assert ollama_template is not None
    assert ollama_template.family == family


def test_the_same_markers_with_other_spaces_are_another_template_of_the_family() -> None:
    first = make_example(MISTRAL_FIRST, {1: "<s>", 2: "</s>"}, [2], "<s>").decide()
    other = EXAMPLES["mistral"].decide()
    assert first.family == other.family == "mistral"
    assert first.ollama_template != other.ollama_template


def test_the_reason_counts_conversations_that_the_chat_template_refuses() -> None:
    decision = make_example(MISTRAL_FIRST, {1: "<s>", 2: "</s>"}, [2], "<s>").decide()
    assert decision.renderer == "TEMPLATE"
    assert "the chat template refuses" in decision.reason


def test_the_reason_names_what_no_ollama_template_can_do() -> None:
    reason = EXAMPLES["llama3"].decide().reason
    assert "7 differ: the server joins messages of one role in a row" in reason
    assert "the chat template trims messages" in reason


@pytest.mark.parametrize(
    "change",
    [
        ("message.content + ", "message.content | upper + "),
        ("message.content + ", "message.content | replace('i', 'j') + "),
        ("message.content + ", "message.content | length | string + "),
    ],
)
def test_without_an_ollama_template_for_the_training_prompts_the_choice_go_is_refused(
    change: tuple[str, str],
) -> None:
    source = CHATML.replace(*change)
    assert source != CHATML
    example = make_example(source, TURNS, [1])
    for version in (NEWEST, "0.24.0"):
        with pytest.raises(ChatTemplateError, match="no TEMPLATE"):
            example.decide(ollama_version=version)
    assert example.decide("auto").renderer == "native"


@pytest.mark.parametrize("example", [*EXAMPLES.values(), PHI4_EXAMPLE])
def test_a_new_server_renders_with_the_ggufs_own_chat_template(example: Example) -> None:
    for version in ("0.30.0", "0.32.15", "0.31.2-rc1", "1.0.0", "0.0.0"):
        decision = example.decide("auto", ollama_version=version)
        assert (decision.renderer, decision.family, decision.ollama_template) == (
            "native", None, None,
        )  # fmt: skip
        assert decision.pins == {}


@pytest.mark.parametrize("version", ["0.29.9", "0.24.0", "0.9.6"])
def test_an_older_server_gets_an_ollama_template(version: str) -> None:
    example = EXAMPLES["chatml"]
    assert example.decide("auto", ollama_version=version).family == "chatml"
    with pytest.raises(ChatTemplateError, match=version):
        example.decide("native", ollama_version=version)


@pytest.mark.parametrize(
    ("addition", "ability"),
    [
        ("{% if tools %}{% endif %}", "tools"),
        ("{# tool_call #}", "tools"),
        ("{# <think></think> #}", "thinking"),
        ("{# content.split('</think>') #}", "thinking"),
    ],
)
def test_an_ollama_template_that_ollama_would_ignore_is_refused(
    addition: str, ability: str
) -> None:
    example = make_example(CHATML + addition, TURNS, [1])
    with pytest.raises(ChatTemplateError, match=f"takes {ability}"):
        example.decide()
    assert example.decide("auto").renderer == "native"
    # Older servers, which render only with a TEMPLATE, ignore none.
    assert example.decide("auto", ollama_version="0.24.0").renderer == "TEMPLATE"


def test_native_has_no_ollama_template() -> None:
    example = EXAMPLES["chatml"]
    decision = example.decide("native")
    assert (decision.renderer, decision.ollama_template) == ("native", None)
    assert decision.stops == example.decide().stops


def test_end_token_ids_are_all_ids_that_end_an_answer() -> None:
    assert EXAMPLES["llama3"].decide("auto").end_token_ids == (128009, 128001, 128008)


def test_a_bos_in_only_some_prompts_is_left_to_the_chat_template() -> None:
    source = "{% if messages[0].role == 'system' %}<s>{% endif %}" + CHATML
    decision = make_example(source, {1: "<|im_end|>", 3: "<s>"}, [1], "<s>").decide("auto")
    assert decision.begins_with_bos is False


def test_a_chat_template_that_omits_the_users_text_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="what the user says"):
        make_example("<|im_start|>hello<|im_end|>", TURNS, [1]).decide()


def test_a_chat_template_that_does_not_render_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="does not render"):
        make_example("{{ raise_exception('no') }}", TURNS, [1]).decide()


def test_the_gguf_contains_the_training_chat_template_after_a_comment(
    llama_cpp_source: Path,
) -> None:
    for name in ("google-gemma-2-2b-it", "Qwen-Qwen3-0.6B", "openai-gpt-oss-120b"):
        chat_template = _published(name, llama_cpp_source)
        padded = decide(chat_template, Vocabulary((), {}, frozenset())).gguf_chat_template
        assert padded is not None
        assert padded.startswith("{#" + "~" * 100 + "#}\n")
        assert padded.endswith(chat_template.source)
        messages = turns("Hi", "A", "B")
        assert replace(chat_template, source=padded).render(
            messages, add_generation_prompt=True
        ) == chat_template.render(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("chatml", ("<|im_end|>", "<|endoftext|>")),
        ("llama3", ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")),
        ("gemma", ("<end_of_turn>", "<eos>")),
        ("mistral", ("</s>",)),
    ],
)
def test_stops_are_the_end_of_a_turn_and_every_eos(name: str, stops: tuple[str, ...]) -> None:
    example = EXAMPLES[name]
    decision = example.decide()
    assert decision.stops == stops
    assert example.vocabulary.token_of[decision.end_token_ids[0]] == stops[0]


def test_the_beginning_of_a_turn_is_not_a_stop() -> None:
    source = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}<|assistant|>"
    )
    tokens = {7: "<|assistant|>", 8: "<|user|>", 9: "<eos>"}
    decision = make_example(source, tokens, [9]).decide("auto")
    assert decision.stops == ("<eos>",)
    assert decision.end_token_ids == (9,)


def test_an_end_marker_that_is_not_a_token_is_a_stop_text() -> None:
    decision = decide(
        EXAMPLES["chatml"].chat_template, Vocabulary((2,), {2: "</s>"}, frozenset({"</s>"}))
    )
    assert decision.stops == ("<|im_end|>", "</s>")
    assert decision.end_token_ids == (2,)


@pytest.mark.parametrize(("name", "expected"), [("llama3", True), ("chatml", False)])
def test_begins_with_bos_is_whether_training_had_a_bos(name: str, expected: bool) -> None:
    assert EXAMPLES[name].decide().begins_with_bos is expected


def _published(name: str, llama_cpp_source: Path) -> ChatTemplate:
    path = llama_cpp_source / "models" / "templates" / f"{name}.jinja"
    bos_token = "<bos>" if "gemma" in name else "<s>"
    return ChatTemplate(path.read_text(encoding="utf-8"), name, bos_token, "</s>")
