"""All real chat templates, decided on, and compared in every conversation on a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.runtime.daemon import Daemon
from tests.prompt.sweep import SweepResult, sweep_one, sweeping_daemon, templates

# These render nothing without tools, or without a variable that only the model's own code sets.
REFUSED = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "fireworks-ai-llama-3-firefunction-v2",
}


@pytest.fixture(scope="module")
def results(
    ollama_binary: Path, llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[SweepResult]]:
    folder = tmp_path_factory.mktemp("sweep")
    with sweeping_daemon(ollama_binary, folder / "ollama") as daemon:
        yield [sweep_one(path, daemon, folder) for path in templates(llama_cpp_source)]


def test_every_chat_template_is_decided_on_or_refused_with_a_reason(
    results: list[SweepResult],
) -> None:
    assert len(results) >= 60
    assert {item.name for item in results if item.decision is None} == REFUSED
    assert all(item.refusal for item in results if item.decision is None)


def test_every_core_conversation_is_equal_on_the_daemon(results: list[SweepResult]) -> None:
    core = [
        (item.name, compared.conversation.name, compared.outcome)
        for item in results
        for compared in (item.comparison.compared if item.comparison else ())
        if compared.conversation.kind == "core" and compared.outcome != "unsupported"
    ]
    assert [item for item in core if item[2] != "equal"] == []
    assert len(core) > 1000


def test_tools_thinking_and_begun_answers_are_equal_or_known_differences(
    results: list[SweepResult],
) -> None:
    unexplained = [
        (item.name, compared.conversation.name)
        for item in results
        for compared in (item.comparison.compared if item.comparison else ())
        if compared.outcome == "different"
    ]
    assert unexplained == []


def test_the_daemon_refuses_only_abilities_that_it_does_not_report(
    results: list[SweepResult],
) -> None:
    for item in results:
        for compared in item.comparison.compared if item.comparison else ():
            if compared.rendered is None and compared.causes:
                (cause,) = compared.causes
                ability = cause.removeprefix("the model does not support ")
                assert ability in ("tools", "thinking"), (item.name, cause)
                assert ability not in item.capabilities


def test_without_the_pins_conversations_would_differ(
    ollama_binary: Path, llama_cpp_source: Path, tmp_path: Path
) -> None:
    """The same chat template, handed over unchanged."""
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
