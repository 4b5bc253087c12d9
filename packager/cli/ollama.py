"""`ftpack ollama`: build a bundle, register it with Ollama, and verify it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import (
    Output,
    conversations_option,
    dry_run_option,
    force_option,
    host_option,
    name_option,
    output_options,
    request_options,
)

if TYPE_CHECKING:
    from packager.package.request import Request
    from packager.prompt.conversation import Conversation


@click.command("ollama")
@request_options(build=True, prompt=True)
@name_option("that of SOURCE's folder")
@dry_run_option
@force_option("another model's files in --out, an incomplete model, a prompt that differs")
@conversations_option()
@output_options()
@host_option
def command(
    request: Request,
    dry_run: bool,
    conversations: tuple[Conversation, ...],
    output: Output,
    host: str | None,
) -> None:
    """Turn SOURCE into a model that answers in Ollama.

    SOURCE is an adapter's folder, a training output, a full model, a Hub id, or
    modelscope://ORG/NAME. Several quants become tags of one name; `latest` is the first.

    \b
    Example:
      ftpack ollama ./lora --quant q5_k_m --name mymodel
    """
    from packager.cli.report import report_bundle, report_plan, report_registered
    from packager.errors import DaemonError
    from packager.runtime.daemon import Daemon
    from packager.verbs.build import Built
    from packager.verbs.ollama import ollama, plan_ollama

    daemon = Daemon(host)
    if dry_run:
        report_plan(plan_ollama(request, daemon, output.console), output)
        return
    finished: list[Built] = []
    try:
        packaged = ollama(
            request, daemon, output.console,
            conversations=conversations, on_built=finished.append,
        )  # fmt: skip
    except DaemonError:
        for built in finished:
            report_bundle(built, output)
        raise
    report_bundle(packaged.built, output, packaged.registered)
    report_registered(packaged.registered, output.console)
