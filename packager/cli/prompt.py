"""`ftpack prompt`: the prompt, proved to be that of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.options import (
    console_for,
    conversations_option,
    make_request,
    output_options,
    prompt_options,
    source_options,
)


@click.command("prompt")
@source_options()
@click.option("--name", help="The registered model's name; by default the source's.")
@click.option("--against", metavar="HOST", help="Also ask the Ollama server there.")
@click.option("--show", "number", type=click.IntRange(min=1), metavar="N",
              help="Print both renderings of conversation N, side by side.")  # fmt: skip
@prompt_options()
@conversations_option()
@output_options()
def command(conversations: Path | None, **options: Any) -> None:
    """Compare what will be rendered with what was rendered in training.

    SOURCE is what `ftpack ollama` takes, a bundle, or the name of a model in Ollama.

    \b
    Example:
      ftpack prompt ./lora --against 127.0.0.1:11434 --name mymodel
    """
    from packager.cli.report import report_prompt, show_conversation
    from packager.runtime.daemon import Daemon
    from packager.verbs.prompt import prove_prompt
    from packager.verify.renderers import conversations_with, require_proved

    console = console_for(options)
    daemon = Daemon(options["against"]) if options["against"] else None
    tried = conversations_with(conversations)
    request = make_request(options)
    proved = prove_prompt(request, tried, daemon, console)
    if options["number"]:
        show_conversation(proved, options["number"])
        return
    report_prompt(proved, console, as_json=options["as_json"])
    for proof in proved.all_proofs:
        require_proved(
            proof, proved.name, "See both renderings with --show N, N from the table above."
        )
