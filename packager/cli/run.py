"""`ftpack run`: chat with a bundle or a GGUF on the embedded llama.cpp."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli.options import Output, chat_options, output_options

if TYPE_CHECKING:
    from packager.verbs.run import Chat, ChatOptions


@click.command("run")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@chat_options()
@output_options()
def command(model: Path, prompt: str | None, chat: ChatOptions, output: Output) -> None:
    """Answer PROMPT with MODEL (a bundle's folder, or a GGUF), or chat line by line.

    \b
    Example:
      ftpack run ./mymodel-gguf "Where do birds live?"
    """
    from packager.verbs.run import run

    with run(model, chat) as opened:
        if prompt is None:
            _chat(opened)
            return
        answer = _stream(opened.answer(prompt), is_shown=not output.as_json)
    if output.as_json:
        import json

        sys.stdout.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")


def _chat(chat: Chat) -> None:
    while True:
        try:
            line = click.prompt(">>>", prompt_suffix=" ", err=True)
        except (click.exceptions.Abort, EOFError):
            return
        _stream(chat.answer(line), is_shown=True)


def _stream(pieces: Iterator[str], *, is_shown: bool) -> str:
    answer = []
    for piece in pieces:
        answer.append(piece)
        if is_shown:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if is_shown:
        sys.stdout.write("\n")
    return "".join(answer)
