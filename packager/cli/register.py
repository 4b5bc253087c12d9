"""`ftpack register`: register a finished bundle with Ollama."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import (
    Output,
    bundle_argument,
    conversations_option,
    force_option,
    host_option,
    name_option,
    output_options,
)

if TYPE_CHECKING:
    from packager.bundle.bundle import Bundle
    from packager.prompt.conversation import Conversation


@click.command("register")
@bundle_argument()
@name_option("the bundle's")
@host_option
@force_option("a prompt that differs")
@conversations_option()
@output_options()
def command(
    bundle: Bundle,
    name: str | None,
    host: str | None,
    force: bool,
    conversations: tuple[Conversation, ...],
    output: Output,
) -> None:
    """Register the finished BUNDLE with Ollama, read it back, and let it answer.

    \b
    Example:
      ftpack register ./mymodel-gguf --name mymodel
    """
    import json

    from packager.bundle.bundle import verify_bundle
    from packager.cli.console import result
    from packager.cli.report import registration_json, report_registered
    from packager.runtime.daemon import Daemon
    from packager.verbs.register import register, require_registrable

    daemon = Daemon(host)
    name = name or bundle.manifest.name
    require_registrable(bundle, daemon, name)
    verify_bundle(bundle, output.console)
    registered = register(
        bundle, daemon, name, output.console, conversations=conversations, force=force
    )
    if output.as_json:
        result(json.dumps(registration_json(registered), indent=2))
    report_registered(registered, output.console)
