"""The prompt of a package: chat templates, end tokens and sampling, as files and options say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import ChatTemplateError, UsageError
from packager.package.package import Package
from packager.package.prepare import prepare
from tests.reports import Reports
from tests.requests import request_for


def key_values(package: Package) -> dict[str, object]:
    return {key: item.value for key, item in package.text.key_values.items()}


@pytest.fixture
def model(small_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A model whose files may be written to."""
    return Path(shutil.copytree(small_model("qwen3"), tmp_path / "model", symlinks=True))


def test_published_sampling_is_offered_with_its_source_and_written_on_request(
    model: Path, tmp_path: Path
) -> None:
    (model / "generation_config.json").unlink()
    progress = Reports()
    package = prepare(request_for(model, ("Q8_0",)), tmp_path, progress)
    offered = [note for note in progress.notes if "--preset qwen3-thinking" in note]
    assert len(offered) == 1
    assert "model card" in offered[0]
    assert "temperature" not in package.prompt.modelfile.parameters

    request = request_for(model, ("Q8_0",), preset="qwen3-thinking", parameters={"top_k": 5})
    chosen = prepare(request, tmp_path).prompt.modelfile
    assert chosen.parameters == {
        **package.prompt.modelfile.parameters,
        "temperature": 0.6, "top_p": 0.95, "min_p": 0.0, "top_k": 5,
    }  # fmt: skip
    with pytest.raises(UsageError, match="qwen4"):
        prepare(request_for(model, ("Q8_0",), preset="qwen4"), tmp_path)


def test_the_chat_template_for_tools_is_in_the_gguf_beside_the_default(
    model: Path, tmp_path: Path
) -> None:
    folder = model / "additional_chat_templates"
    folder.mkdir()
    tool_use = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | length }}"
    (folder / "tool_use.jinja").write_text(tool_use)
    (folder / "rag.jinja").write_text("never trained with")
    values = key_values(prepare(request_for(model, ("Q8_0",)), tmp_path))
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
    package = prepare(request_for(model, ("Q8_0",)), tmp_path)
    values = key_values(package)
    ends = {values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert {128009, 128008} <= ends
    assert len(ends) == 3


def test_thinking_is_pinned_to_its_training_value(model: Path, tmp_path: Path) -> None:
    as_trained = prepare(request_for(model, ("Q8_0",)), tmp_path).prompt.decision
    assert as_trained.pins == {}
    off = prepare(request_for(model, ("Q8_0",), thinking="off"), tmp_path).prompt.decision
    assert off.pins == {"enable_thinking": "false"}
    assert "enable_thinking = false" in off.reason


def test_an_older_server_gets_an_ollama_template_or_a_refusal(model: Path, tmp_path: Path) -> None:
    request = request_for(model, ("Q8_0",), ollama_version="0.20.1")
    assert prepare(request, tmp_path).prompt.decision.renderer == "TEMPLATE"
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text("{{ messages[-1].content | upper }}")
    with pytest.raises(ChatTemplateError, match=r"0\.20\.1"):
        prepare(request, tmp_path)
