"""What can go wrong with prompts, one hazard at a time, on a real daemon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ollama
import pytest

from packager.errors import PromptRefusedError, RegistrationError
from packager.prompt.conversation import Conversation, turns
from packager.prompt.lint import lint
from packager.prompt.native import PADDING
from packager.runtime.daemon import Daemon
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.renderers import daemon_renderer
from tests.daemon import OllamaDaemon
from tests.prompt.examples import EXAMPLES, MISTRAL_FIRST, make_example
from tests.runtime.chain_gguf import ANSWER, write_chain_gguf

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OLLAMA_TEMPLATE = (
    "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n"
)


@pytest.fixture
def daemon(ollama_daemon: OllamaDaemon) -> Daemon:
    return Daemon(ollama_daemon.host)


@pytest.fixture
def client(ollama_daemon: OllamaDaemon) -> ollama.Client:
    return ollama.Client(ollama_daemon.host)


def create(
    daemon: Daemon,
    name: str,
    gguf: Path,
    ollama_template: str | None = None,
    *,
    system: str | None = None,
    stops: Sequence[str] = (),
) -> str:
    daemon.create(
        name,
        {gguf.name: daemon.upload(gguf)},
        ollama_template=ollama_template,
        system=system,
        stops=stops,
        parameters={},
    )
    return name


def prompt_tokens(client: ollama.Client, name: str, content: str) -> int:
    """The number of tokens in a prompt that the daemon has not cached."""
    reply = client.chat(
        name, [{"role": "user", "content": content}], options={"num_predict": 1}, keep_alive=0
    )
    return reply.prompt_eval_count or 0


def test_1_and_2_the_template_in_force_is_read_back_and_any_other_is_refused(
    daemon: Daemon, tmp_path: Path
) -> None:
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=PADDING + TURNS)
    create(daemon, "hazard-1", gguf)
    daemon.verify("hazard-1", None, [])
    assert daemon.show("hazard-1").template_text == PADDING + TURNS
    with pytest.raises(RegistrationError):
        daemon.verify("hazard-1", OLLAMA_TEMPLATE, [])
    bare = write_chain_gguf(tmp_path / "bare.gguf", chat_template=None)
    create(daemon, "hazard-2", bare)
    with pytest.raises(RegistrationError):
        daemon.verify("hazard-2", None, [])


@pytest.mark.parametrize("ollama_template", [None, OLLAMA_TEMPLATE])
def test_3_an_id_ends_an_answer_and_a_stop_that_names_a_control_token_does_not(
    ollama_template: str | None, daemon: Daemon, client: ollama.Client, tmp_path: Path
) -> None:
    ends = {}
    for ending, stops in (("eot", ()), (None, ("<|fin|>",))):
        gguf = write_chain_gguf(
            tmp_path / f"{ending}.gguf", chat_template=PADDING + TURNS.replace("</s>", ""),
            eos="<|fin|>", end_as=ending,
        )  # fmt: skip
        name = f"hazard-3-{ending}-{'go' if ollama_template else 'native'}".lower()
        go = ollama_template and ollama_template.replace("</s>", "")
        create(daemon, name, gguf, go, stops=stops)
        reply = client.chat(name, [{"role": "user", "content": "Hi"}], options={"num_predict": 32})
        ends[ending] = (reply.done_reason, reply.message.content)
    assert ends["eot"] == ("stop", ANSWER)
    assert ends[None][0] == "length"


@pytest.mark.parametrize("ollama_template", [None, OLLAMA_TEMPLATE])
def test_4_there_is_exactly_one_bos_or_none(
    ollama_template: str | None, daemon: Daemon, client: ollama.Client, tmp_path: Path
) -> None:
    counts = {}
    for adds_bos in (True, False):
        gguf = write_chain_gguf(
            tmp_path / f"{adds_bos}.gguf", adds_bos=adds_bos,
            chat_template=PADDING + ("{{ bos_token }}" if adds_bos else "") + TURNS,
        )  # fmt: skip
        name = f"hazard-4-{adds_bos}-{'go' if ollama_template else 'native'}".lower()
        create(daemon, name, gguf, ollama_template)
        counts[adds_bos] = prompt_tokens(client, name, "Hi")
    # One token a byte, and `</s>` is one token.
    plain = len("<|user|>\nHi\n<|assistant|>\n") + 1
    assert counts == {True: plain + 1, False: plain}


def test_4_a_bos_in_a_go_template_would_be_doubled(
    daemon: Daemon, client: ollama.Client, tmp_path: Path
) -> None:
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=PADDING + TURNS)
    counts = [
        prompt_tokens(client, create(daemon, name, gguf, go), "Hi")
        for name, go in (
            ("hazard-4-one", OLLAMA_TEMPLATE),
            ("hazard-4-two", "<s>" + OLLAMA_TEMPLATE),
        )
    ]
    assert counts[1] == counts[0] + 1


@pytest.mark.parametrize(
    ("addition", "abilities"),
    [
        ("", {"completion"}),
        ("{% if tools %}{{ tools }}{% endif %}", {"completion", "tools"}),
        (
            "{% if enable_thinking %}<think>{% else %}</think>{% endif %}",
            {"completion", "thinking"},
        ),
    ],
)
def test_5_the_daemon_offers_the_abilities_of_the_chat_template(
    addition: str, abilities: set[str], daemon: Daemon, tmp_path: Path
) -> None:
    example = make_example(TURNS + addition, {2: "</s>"}, [2])
    decision = example.decide("auto")
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=decision.gguf_chat_template)
    name = create(daemon, "hazard-5", gguf, decision.ollama_template)
    assert set(daemon.show(name).capabilities) == abilities


def test_6_a_conversation_that_the_chat_template_refuses_is_found_in_advance(
    daemon: Daemon, tmp_path: Path
) -> None:
    example = make_example(MISTRAL_FIRST, {1: "<s>", 2: "</s>"}, [2], "<s>")
    two_users = Conversation("", (*turns("One."), *turns("Two.")))
    assert any("roles must alternate" in finding for finding in lint(
        example.chat_template, example.vocabulary
    ))  # fmt: skip
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=PADDING + MISTRAL_FIRST)
    render = daemon_renderer(daemon, create(daemon, "hazard-6", gguf))
    with pytest.raises(PromptRefusedError, match="roles must alternate"):
        render(two_users)


@pytest.mark.parametrize(
    "text", ['"""', '"quoted"', "{{ .System }} }}", "'\n\n'", "a\r\nb", "\u200b"]
)
def test_7_braces_quotes_and_line_ends_arrive_unchanged(
    text: str, daemon: Daemon, tmp_path: Path
) -> None:
    escaped = OLLAMA_TEMPLATE + "{{ `" + text + "` }}"
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=PADDING + TURNS)
    name = create(daemon, "hazard-7", gguf, escaped, system=text, stops=(text,))
    response = daemon.show(name)
    assert (response.template_text, response.system, response.stops) == (escaped, text, (text,))
    rendered = daemon_renderer(daemon, name)(Conversation("", turns("Hi")))
    assert rendered.startswith(f"<|system|>\n{text}</s>\n")
    assert rendered.endswith(text.replace("\r", ""))  # Go drops it from raw strings


def test_8_the_daemon_adds_no_sampling_parameters(daemon: Daemon, tmp_path: Path) -> None:
    gguf = write_chain_gguf(
        tmp_path / "m.gguf", chat_template=EXAMPLES["gemma"].chat_template.source
    )
    response = daemon.show(create(daemon, "hazard-8", gguf))
    assert (response.parameters, response.stops) == ({}, ())


def test_17_a_marker_is_one_control_token_and_content_contains_none(
    daemon: Daemon, client: ollama.Client, tmp_path: Path
) -> None:
    gguf = write_chain_gguf(
        tmp_path / "m.gguf", chat_template=PADDING + TURNS, bos="<|user|>", adds_bos=False
    )
    with GgufVocabulary(gguf) as vocabulary:
        assert vocabulary.tokenize("<|user|>") == [1]
        assert len(vocabulary.tokenize("<|assistant|>")) == len("<|assistant|>")
    name = create(daemon, "hazard-17", gguf)
    assert prompt_tokens(client, name, "Hi") == 1 + len("\nHi") + 1 + len("\n<|assistant|>\n")
