"""What a package says of its prompt: templates, ends, sampling; nothing that was not asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import ChatTemplateError, UsageError
from packager.package.plan import Request
from packager.package.prepare import Package, prepare
from packager.progress import Silent
from packager.verbs.inspect import inspect
from tests.reports import Reports


def key_values(package: Package) -> dict[str, object]:
    return {key: item.value for key, item in package.conversion.key_values.items()}


@pytest.fixture
def model(small_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A model whose files may be written to."""
    return Path(shutil.copytree(small_model("qwen3"), tmp_path / "model", symlinks=True))


def test_published_sampling_is_offered_with_its_source_and_written_when_asked_for(
    model: Path,
) -> None:
    (model / "generation_config.json").unlink()
    reports = Reports()
    package = prepare(Request(str(model), ("Q8_0",)), reports)
    offered = [note for note in reports.notes if "--preset qwen3-thinking" in note]
    assert len(offered) == 1
    assert "model card" in offered[0]
    assert "temperature" not in package.modelfile.parameters

    chosen = prepare(
        Request(str(model), ("Q8_0",), preset="qwen3-thinking", parameters={"top_k": 5})
    )
    assert chosen.modelfile.parameters == {
        **package.modelfile.parameters, "temperature": 0.6, "top_p": 0.95, "min_p": 0.0, "top_k": 5,
    }  # fmt: skip
    with pytest.raises(UsageError, match="qwen4"):
        prepare(Request(str(model), ("Q8_0",), preset="qwen4"))


def test_the_template_for_tools_goes_into_the_gguf_beside_the_other(model: Path) -> None:
    folder = model / "additional_chat_templates"
    folder.mkdir()
    tool_use = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | length }}"
    (folder / "tool_use.jinja").write_text(tool_use)
    (folder / "rag.jinja").write_text("never trained with")
    values = key_values(prepare(Request(str(model), ("Q8_0",))))
    assert values["tokenizer.chat_templates"] == ["tool_use"]
    assert str(values["tokenizer.chat_template.tool_use"]).endswith(tool_use)
    assert "tokenizer.chat_template.rag" not in values


def test_each_id_that_ends_an_answer_is_in_the_gguf(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(small_model("llama"), tmp_path / "model", symlinks=True))
    (model / "generation_config.json").unlink(missing_ok=True)
    ids = {"eos_token_id": [128001, 128008, 128009]}
    (model / "generation_config.json").write_text(json.dumps(ids))
    package = prepare(Request(str(model), ("Q8_0",)))
    values = key_values(package)
    ends = {values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert {128009, 128008} <= ends
    assert len(ends) == 3


def test_thinking_is_pinned_as_it_is_said_to_have_been_trained(model: Path) -> None:
    as_trained = prepare(Request(str(model), ("Q8_0",))).decision
    assert as_trained.pins == {}
    off = prepare(Request(str(model), ("Q8_0",), thinking="off")).decision
    assert off.pins == {"enable_thinking": "false"}
    assert "enable_thinking = false as in training" in off.reason


def test_an_older_server_gets_a_template_or_a_refusal(model: Path) -> None:
    decision = prepare(Request(str(model), ("Q8_0",), ollama_version="0.20.1")).decision
    assert decision.renderer == "TEMPLATE"
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text("{{ messages[-1].content | upper }}")
    with pytest.raises(ChatTemplateError, match=r"0\.20\.1"):
        prepare(Request(str(model), ("Q8_0",), ollama_version="0.20.1"))


def test_a_version_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="'newest'"):
        prepare(Request(str(model), ("Q8_0",), ollama_version="newest"))


def test_inspect_tells_what_is_wrong_with_the_chat_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    found = inspect(str(model), None, None, Silent())
    assert found["chat template"] == "chat_template.jinja of the fine-tune"
    findings = found["chat template, found"]
    assert isinstance(findings, list)
    assert any("system turns" in finding for finding in findings)
    assert any("no end marker" in finding for finding in findings)


def test_a_record_of_the_training_that_cannot_be_read_is_told_and_stops_nothing(
    model: Path,
) -> None:
    (model / "training_args.yaml").write_text("template: [qwen")
    reports = Reports()

    package = prepare(Request(str(model), ("Q8_0",)), reports)

    assert package.modelfile.stops
    assert any("training_args.yaml cannot be read" in warning for warning in reports.warnings)
