"""Real chat templates, decided on and proved on a real daemon: all of them, each conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.runtime.daemon import Daemon
from tests.prompt.sweep import Swept, sweep_one, sweeping_daemon, templates

# These render nothing without tools, or without a variable that only their own code defines.
REFUSED = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "fireworks-ai-llama-3-firefunction-v2",
}


@pytest.fixture(scope="module")
def swept(
    ollama_binary: Path, llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Swept]]:
    folder = tmp_path_factory.mktemp("sweep")
    with sweeping_daemon(ollama_binary, folder / "ollama") as daemon:
        yield [sweep_one(path, daemon, folder) for path in templates(llama_cpp_source)]


def test_every_template_is_decided_on_or_refused_with_the_reason(swept: list[Swept]) -> None:
    assert len(swept) >= 60
    assert {item.name for item in swept if item.decision is None} == REFUSED
    assert all(item.refusal for item in swept if item.decision is None)


def test_every_core_conversation_is_equal_on_the_daemon(swept: list[Swept]) -> None:
    core = [
        (item.name, compared.conversation.name, compared.outcome)
        for item in swept
        for compared in (item.comparison.compared if item.comparison else ())
        if compared.conversation.kind == "core" and compared.outcome != "unsupported"
    ]
    assert [found for found in core if found[2] != "equal"] == []
    assert len(core) > 1000


def test_tools_thinking_and_begun_answers_are_equal_or_declared(swept: list[Swept]) -> None:
    unexplained = [
        (item.name, compared.conversation.name)
        for item in swept
        for compared in (item.comparison.compared if item.comparison else ())
        if compared.outcome == "different"
    ]
    assert unexplained == []


def test_what_the_daemon_refuses_is_an_ability_that_it_does_not_report(
    swept: list[Swept],
) -> None:
    for item in swept:
        for compared in item.comparison.compared if item.comparison else ():
            if compared.rendered is None and compared.causes:
                (cause,) = compared.causes
                ability = cause.removeprefix("the model does not support ")
                assert ability in ("tools", "thinking"), (item.name, cause)
                assert ability not in item.capabilities


def test_without_the_pins_conversations_would_differ(
    ollama_binary: Path, llama_cpp_source: Path, tmp_path: Path
) -> None:
    """What the comparison is for: the same chat template, handed over as it is."""
    from packager.prompt.chat_template import ChatTemplate
    from packager.prompt.conversation import CORE
    from packager.prompt.native import PADDING
    from packager.verify.renderers import compare_on_daemon
    from tests.runtime.chain_gguf import write_chain_gguf

    (path,) = templates(llama_cpp_source, ["meta-llama-Llama-3.1"])
    chat_template = ChatTemplate(path.read_text(encoding="utf-8"), path.name, "<s>", "</s>")
    gguf = write_chain_gguf(tmp_path / "m.gguf", chat_template=PADDING + chat_template.source)
    with sweeping_daemon(ollama_binary, tmp_path / "ollama") as daemon:
        _register(daemon, gguf)
        comparison = compare_on_daemon(chat_template, daemon, "bare", CORE)
    assert comparison.count("equal") == 0
    assert {cause for item in comparison.compared for cause in item.causes} == {
        "the server sets variables of its own for thinking and the date"
    }


def _register(daemon: Daemon, gguf: Path) -> None:
    digest = daemon.upload(gguf)
    daemon.create(
        "bare",
        {gguf.name: digest},
        ollama_template=None,
        system=None,
        stops=(),
        parameters={},
    )
