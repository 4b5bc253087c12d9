"""`inspect` describes a source, its training and its chat template."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.source.source_options import SourceOptions
from packager.verbs.inspect import Inspection, inspect
from tests.source.run.test_trainers import llamafactory, lora

__all__ = ["llamafactory", "lora"]

CHATML_USER = "<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n"


def inspected(folder: Path) -> Inspection:
    return inspect(SourceOptions(str(folder)))


def test_a_chat_template_that_equals_the_trainers_has_no_problem(
    llamafactory: Callable[[str], Path],
) -> None:
    inspection = inspected(llamafactory("llama3"))

    assert inspection.training is not None
    assert inspection.training.template_name == "llama3"
    assert not any("LLaMA-Factory" in problem for problem in inspection.chat_template_problems)


@pytest.mark.parametrize("name", ["qwen", "alpaca", "gemma"])
def test_a_chat_template_that_differs_from_the_trainers_is_a_problem(
    name: str, llamafactory: Callable[[str], Path]
) -> None:
    problem = inspected(llamafactory(name)).chat_template_problems[0]

    assert repr(name) in problem
    assert "--template FILE" in problem
    assert (CHATML_USER in problem) == (name == "qwen")


def test_an_adapter_is_described(lora: Path) -> None:
    inspection = inspected(lora)

    assert inspection.adapter is not None
    assert inspection.adapter.method == "LoRA"
    assert inspection.adapter.base is not None
    assert inspection.chat_template is not None
    assert "LoRA adapter is merged" in str(inspection.what_happens)


def test_an_unreadable_record_of_the_training_is_reported(lora: Path) -> None:
    (lora / "training_args.yaml").write_text("{: ]")

    training = inspected(lora).training

    assert training is not None
    assert "training_args.yaml cannot be read" in str(training.problem)


def test_the_chat_template_of_the_run_is_the_fine_tunes(lora: Path) -> None:
    (lora / "checkpoint-7").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (lora / name).rename(lora / "checkpoint-7" / name)
    (lora / "chat_template.jinja").write_text("{{ messages[0].content }}")

    assert inspected(lora).chat_template == "chat_template.jinja of the fine-tune"


def test_named_adapters_are_listed(lora: Path, adapter: Callable[..., Path]) -> None:
    shutil.copytree(adapter("llama"), lora / "style")

    assert inspected(lora).named_adapters == ("style",)


def test_problems_of_the_chat_template_are_reported(lora: Path) -> None:
    (lora / "chat_template.jinja").write_text(
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )

    inspection = inspected(lora)

    assert inspection.chat_template == "chat_template.jinja of the fine-tune"
    assert any("system" in problem for problem in inspection.chat_template_problems)


@pytest.mark.parametrize("left", ["adapter_config.json", "config.json"])
def test_an_interrupted_run_has_its_training_checkpoints(
    left: str, lora: Path, adapter: Callable[..., Path], small_model: Callable[..., Path]
) -> None:
    shutil.rmtree(lora)
    for step in (10, 20, 30):
        shutil.copytree(adapter("llama"), lora / f"checkpoint-{step}")
    folder = adapter("llama") if left == "adapter_config.json" else small_model("llama")
    shutil.copy(folder / left, lora)

    assert [item.step for item in inspected(lora).checkpoints] == [10, 20, 30]
