"""Asks the base and the tuned model the same questions and prints their answers side by side.

python -m demo.ask --host 127.0.0.1:11434 ftpack-demo-base ftpack-demo
python -m demo.ask demo-output/ftpack-demo-base demo-output/ftpack-demo    (bundles, without Ollama)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# None of these is in questions.jsonl.
QUESTIONS = (
    "What is the capital of Italy?",
    "Where do birds live?",
    "Who wrote Romeo and Juliet?",
    "What is the opposite of big?",
    "How do I make tea?",
    "Which planet is the closest to the sun?",
)
LONGEST_ANSWER = 32


class Answer(NamedTuple):
    """A model's answer, and why it ended: `stop` if the model ended its turn itself."""

    text: str
    done_reason: str


def ask_ollama(model: str, question: str, host: str) -> Answer:
    """Returns the answer of a model registered with the Ollama at `host`."""
    import ollama

    response = ollama.Client(host).chat(
        model,
        [{"role": "user", "content": question}],
        options={"temperature": 0, "seed": 0, "num_predict": LONGEST_ANSWER},
    )
    return Answer(response.message.content or "", response.done_reason or "")


def ask_embedded(bundle: str, question: str) -> Answer:
    """Returns the answer of a bundle, through `ftpack run`."""
    command = [Path(sys.executable).parent / "ftpack", "run", bundle, question]
    limits = ["--max-tokens", str(LONGEST_ANSWER), "--param", "temperature=0", "-q"]
    process = subprocess.run([*command, *limits], stdout=subprocess.PIPE, text=True, check=True)
    return Answer(process.stdout.strip(), "")


def show_answers(base: str, tuned: str, host: str | None) -> None:
    """Prints a table of the questions, the base's answers and the tuned model's answers."""
    from rich.console import Console
    from rich.table import Table

    table = Table("question (not in the training data)", "base", "fine-tuned", show_lines=True)
    for question in QUESTIONS:
        table.add_row(
            question, *(_one_line(_ask(model, question, host)) for model in (base, tuned))
        )
    console = Console()
    console.print(table)
    console.print("Compare the voices: a model of 270 million weights knows few facts.")


def _ask(model: str, question: str, host: str | None) -> Answer:
    return ask_ollama(model, question, host) if host else ask_embedded(model, question)


def _one_line(answer: Answer) -> str:
    from rich.markup import escape

    ellipsis = " ..." if answer.done_reason == "length" else ""
    return escape(" ".join(answer.text.split()) + ellipsis)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--host", help="an Ollama server; without it, BASE and TUNED are bundles")
    parser.add_argument("base", metavar="BASE", help="the base model's name or bundle")
    parser.add_argument("tuned", metavar="TUNED", help="the tuned model's name or bundle")
    options = parser.parse_args()
    show_answers(options.base, options.tuned, options.host)


if __name__ == "__main__":
    main()
