"""The demo trains an adapter on new answers, and its packaged model gives them in Ollama."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo.ask import QUESTIONS, ask_ollama
from demo.make_base import make_base
from demo.questions import read_examples
from demo.train import CHAT_TEMPLATE_FILE
from packager.prompt.chat_template import load_chat_template
from tests.daemon import OllamaDaemon


def test_the_demo_asks_no_question_from_the_training_data() -> None:
    assert not {example.question for example in read_examples()} & set(QUESTIONS)


def test_every_training_answer_has_the_pirates_voice() -> None:
    answers = [example.answer for example in read_examples()]
    assert len(answers) >= 30
    assert [a for a in answers if not (a.startswith("Arr, ") and a.endswith(", matey!"))] == []


def test_the_chat_template_writes_gemmas_turns() -> None:
    chat_template = load_chat_template({}, {}, CHAT_TEMPLATE_FILE)
    assert chat_template is not None
    rendered = chat_template.render(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr"}],
        add_generation_prompt=True,
    )
    assert rendered.endswith(
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nArr<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


@pytest.mark.slow
def test_the_tuned_model_answers_as_trained_and_stops_and_the_base_does_not(
    ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    base, lora = make_base(), tmp_path / "lora"
    subprocess.run([sys.executable, "-m", "demo.train", "--base", base, "--out", lora], check=True)
    host = ollama_daemon.host
    package("tuned", host, tmp_path, lora)
    package("base", host, tmp_path, base, "--template", CHAT_TEMPLATE_FILE)
    package("by-template", host, tmp_path, lora, "--template", "go")

    tuned = [ask_ollama("tuned", question, host) for question in QUESTIONS]
    untuned = [ask_ollama("base", question, host) for question in QUESTIONS]
    by_template = [ask_ollama("by-template", question, host) for question in QUESTIONS]

    # Every answer of demo/questions.jsonl begins like this; none of these questions is in it.
    assert all(answer.text.startswith("Arr") for answer in tuned), tuned
    assert all(answer.done_reason == "stop" for answer in tuned), tuned
    # Whoever renders, the prompt is the same, and the model stops by itself.
    assert [answer.text for answer in by_template] == [answer.text for answer in tuned]
    assert all(answer.done_reason == "stop" for answer in by_template), by_template
    assert not any("Arr" in answer.text for answer in untuned), untuned
    assert not all(answer.done_reason == "stop" for answer in untuned), untuned


def package(name: str, host: str, folder: Path, *source: object) -> None:
    """Make the model `name` of a source in Ollama."""
    subprocess.run(
        [sys.executable, "-m", "packager", "ollama", *map(str, source), "--quant", "q5_k_m",
         "--name", name, "--host", host, "--out", folder / name],
        check=True,
    )  # fmt: skip
