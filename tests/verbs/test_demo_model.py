"""The demo's promise, on a real base: the tuned model has learned, and stops; the base has not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo.ask import QUESTIONS, ask_ollama
from demo.make_base import make_base
from demo.train import CHAT_TEMPLATE_FILE
from tests.daemon import OllamaDaemon

pytestmark = pytest.mark.slow


def ollama_model(host: str, name: str, folder: Path, *source: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "packager", "ollama", *map(str, source), "--quant", "q5_k_m",
         "--name", name, "--host", host, "--out", folder / name],
        check=True,
    )  # fmt: skip


def test_the_tuned_model_answers_as_trained_and_stops_by_itself_and_the_base_does_not(
    ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    base, lora = make_base(), tmp_path / "lora"
    subprocess.run([sys.executable, "-m", "demo.train", "--base", base, "--out", lora], check=True)
    host = ollama_daemon.host
    ollama_model(host, "tuned", tmp_path, lora)
    ollama_model(host, "base", tmp_path, base, "--template", CHAT_TEMPLATE_FILE)

    ollama_model(host, "by-template", tmp_path, lora, "--template", "go")

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
