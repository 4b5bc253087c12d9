"""`ftpack prompt`: compare a model's prompts with the training prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import (
    Output,
    conversations_option,
    name_option,
    output_options,
    request_options,
)

if TYPE_CHECKING:
    from packager.package.request import Request
    from packager.prompt.conversation import Conversation


@click.command("prompt")
@request_options(prompt=True)
@name_option("that of SOURCE's folder or bundle")
@click.option(
    "--against", metavar="HOST", help="Also compare what the Ollama server at HOST renders."
)
@click.option("--show", "number", type=click.IntRange(min=1), metavar="N",
              help="Print both prompts of conversation N, side by side.")  # fmt: skip
@conversations_option()
@output_options()
def command(
    request: Request,
    against: str | None,
    number: int | None,
    conversations: tuple[Conversation, ...],
    output: Output,
) -> None:
    """Compare the prompts that will be rendered with the training prompts.

    SOURCE is what `ftpack ollama` takes, a bundle, or the name of a model in Ollama.

    \b
    Example:
      ftpack prompt ./lora --against 127.0.0.1:11434 --name mymodel
    """
    from packager.cli.report import report_prompt, require_conversation, show_conversation
    from packager.runtime.daemon import Daemon
    from packager.verbs.prompt import prompt as compare_prompt
    from packager.verify.renderers import require_equal

    if number:
        require_conversation(number, conversations)
    daemon = Daemon(against) if against else None
    report = compare_prompt(request, daemon, output.console, conversations=conversations)
    if number:
        show_conversation(report, number)
        return
    report_prompt(report, output)
    for comparison in report.all_comparisons:
        require_equal(
            comparison, report.name, "See both renderings with --show N, N from the table above."
        )
