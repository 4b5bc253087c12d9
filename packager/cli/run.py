"""`ftpack run`: chat with a bundle or a GGUF on the embedded llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from packager.cli.options import ParameterType, QuantType, output_options, quiet_libraries


@click.command("run")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--quant", type=QuantType(), metavar="Q",
              help="Which of the bundle's quants; by default the first.")  # fmt: skip
@click.option("--system", metavar="TEXT", help="A system prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True,
              help="The longest answer.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0, max=512), default=0,
              help="Threads; by default one per core.")  # fmt: skip
@click.option("--param", "parameters", multiple=True, type=ParameterType(), metavar="K=V",
              help="A sampling parameter, such as temperature=0.")  # fmt: skip
@output_options()
def command(model: Path, prompt: str | None, **options: Any) -> None:
    """Answer PROMPT with MODEL (a bundle's folder, or a GGUF), or chat line by line.

    \b
    Example:
      ftpack run ./mymodel-gguf "Where do birds live?"
    """
    from packager.verbs.run import open_chat

    quiet_libraries(is_verbose=options["verbose"])
    chat = open_chat(
        model,
        quant=options["quant"],
        system=options["system"],
        max_tokens=options["max_tokens"],
        threads=options["threads"],
        parameters=dict(options["parameters"]),
    )
    if prompt is not None:
        answer = _stream(chat.answer(prompt), is_shown=not options["as_json"])
        if options["as_json"]:
            import json

            sys.stdout.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
        return
    while True:
        try:
            line = click.prompt(">>>", prompt_suffix=" ", err=True)
        except (click.exceptions.Abort, EOFError):
            return
        _stream(chat.answer(line), is_shown=True)


def _stream(pieces: Any, *, is_shown: bool) -> str:
    whole = []
    for piece in pieces:
        whole.append(piece)
        if is_shown:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if is_shown:
        sys.stdout.write("\n")
    return "".join(whole)
