"""A real daemon renders the prompts that were decided on, and reads a Modelfile as written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ollama
import pytest

from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import Messages, turns
from packager.prompt.decision import PromptDecision, decide
from packager.prompt.go.families import known_templates
from packager.prompt.go.render import render_go_template
from packager.prompt.modelfile_spec import ModelfileSpec, render_modelfile
from packager.runtime.show import read_show_response
from packager.templates import read_template
from tests.daemon import OllamaDaemon
from tests.prompt.examples import EXAMPLES, make_example
from tests.runtime.chain_gguf import write_chain_gguf

CONVERSATIONS: tuple[Messages, ...] = (
    turns("Hi"),
    turns("Hi", system="Be brief."),
    turns("Hi", "A\n\nB", "{{ C }} < 2", "D", "日本語 🙂"),
    turns("Hi", "A", "B", system="S\n\nT"),
)
# Only for a TEMPLATE: a chat template can render some of these differently.
ODD: tuple[Messages, ...] = (
    turns("Hi", "It begins"),
    (*turns("One"), *turns("Two", " padded \n"), *turns("Three")),
    (*turns("One", "Two"), {"role": "system", "content": "S"}, *turns("Three")),
)


@pytest.mark.parametrize("file", list(known_templates()))
def test_ollama_evaluates_each_ollama_template_as_ftpack_does(
    file: str, ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    ollama_template = read_template(f"ollama/{file}.gotmpl")
    client = ollama.Client(ollama_daemon.host)
    name = f"prompt-{file}"
    _create(client, name, write_chain_gguf(tmp_path / "m.gguf"), ollama_template)
    for messages in (*CONVERSATIONS, *ODD):
        expected = render_go_template(ollama_template, messages)
        assert _rendered(client, name, messages) == expected


@pytest.mark.parametrize("family", list(EXAMPLES))
def test_the_decision_renders_the_training_prompts(
    family: str, ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    example = EXAMPLES[family]
    decision = example.decide()
    client = ollama.Client(ollama_daemon.host)
    name = f"prompt-decided-{family}"
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=decision.gguf_chat_template)
    _create(client, name, gguf, decision.ollama_template)
    assert client.show(name).template == decision.ollama_template
    _assert_as_trained(client, name, example.chat_template)


def test_the_ggufs_chat_template_renders_if_ollama_would_ignore_a_template(
    ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    source = EXAMPLES["chatml"].chat_template.source + "{% if tools %}{{ tools }}{% endif %}"
    example = make_example(source, {1: "<|im_end|>"}, [1])
    decision = example.decide("auto")
    client = ollama.Client(ollama_daemon.host)
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=decision.gguf_chat_template)
    _create(client, "prompt-native", gguf, decision.ollama_template)
    assert client.show("prompt-native").template == decision.gguf_chat_template
    _assert_as_trained(client, "prompt-native", example.chat_template)


def test_the_padding_keeps_ollama_from_adding_its_own_template(
    ollama_daemon: OllamaDaemon, llama_cpp_source: Path, tmp_path: Path
) -> None:
    path = llama_cpp_source / "models" / "templates" / "google-gemma-2-2b-it.jinja"
    # Without ftpack, the daemon recognises the GGUF's chat template as one that it knows.
    chat_template = ChatTemplate(path.read_text(encoding="utf-8"), "gemma", "<s>", "</s>")
    client = ollama.Client(ollama_daemon.host)
    in_force = []
    for name, source in (
        ("prompt-bare", chat_template.source),
        ("prompt-padded", _native(chat_template).gguf_chat_template),
    ):
        gguf = write_chain_gguf(tmp_path / f"{name}.gguf", chat_template=source)
        _create(client, name, gguf, None)
        in_force.append(client.show(name).template)
    bare, padded = in_force
    assert "{{- range .Messages }}" in str(bare)
    assert padded == _native(chat_template).gguf_chat_template


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "two\n\nlines\n",
        ' padded "quoted" ',
        '"""at the start',
        'at the end"""',
        '"""',
        '"',
        'a """ b \n "" c',
        "tab\tand \\n and {{ \"{{\" }} and 'single'",
        "日本語 🙂 é",
        "# no comment\nFROM nothing",
    ],
)
def test_ollama_reads_a_modelfile_back_as_written(
    text: str, ollama_binary: Path, ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    parameters = {"temperature": 0.25, "top_k": 7, "num_ctx": 512}
    spec = ModelfileSpec(f"{{{{ .Prompt }}}}{text}", text, (text, "<|end|>"), parameters)
    write_chain_gguf(tmp_path / "m.gguf")
    (tmp_path / "Modelfile").write_text(
        render_modelfile(spec, "m.gguf"), encoding="utf-8", newline=""
    )
    subprocess.run(
        [ollama_binary, "create", "prompt-modelfile", "-f", tmp_path / "Modelfile"],
        env={**os.environ, "OLLAMA_HOST": ollama_daemon.host, "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    answer = _post(ollama.Client(ollama_daemon.host), "/api/show", {"model": "prompt-modelfile"})
    response = read_show_response(answer)
    assert (answer["template"], response.system, response.stops) == (
        spec.ollama_template,
        text,
        spec.stops,
    )
    assert response.parameters == parameters


def _native(chat_template: ChatTemplate) -> PromptDecision:
    return decide(chat_template, EXAMPLES["gemma"].vocabulary, choice="native")


def _assert_as_trained(client: ollama.Client, name: str, chat_template: ChatTemplate) -> None:
    for messages in CONVERSATIONS:
        expected = chat_template.render(messages, add_generation_prompt=True)
        expected = expected.removeprefix(chat_template.bos_token or "")
        assert _rendered(client, name, messages) == expected


def _create(client: ollama.Client, name: str, gguf: Path, ollama_template: str | None) -> None:
    digest = client.create_blob(gguf)
    client.create(
        name, files={gguf.name: digest}, template=ollama_template, parameters={"stop": []}
    )


def _rendered(client: ollama.Client, name: str, messages: Sequence[Mapping[str, str]]) -> str:
    body = {
        "model": name,
        "messages": list(messages),
        "stream": False,
        "_debug_render_only": True,
    }
    answer = _post(client, "/api/chat", body)
    return str(answer["_debug_info"]["rendered_template"])


def _post(client: ollama.Client, path: str, body: Mapping[str, object]) -> Any:
    # The client has no argument for `_debug_render_only`.
    answer = client._client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()
