"""`ftpack register`: what `ftpack ollama` does after building."""

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
@name_option
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
    from packager.verbs.register import model_names, register, require_store_space

    daemon = Daemon(host)
    name = name or bundle.manifest.name
    model_names(name, [file.quant for file in bundle.ggufs])
    daemon.version()
    verify_bundle(bundle, output.console)
    require_store_space(daemon, [file.size_bytes for file in bundle.files])
    registered = register(
        bundle, daemon, name, output.console, conversations=conversations, force=force
    )
    if output.as_json:
        result(json.dumps(registration_json(registered), indent=2))
    report_registered(registered, output.console)
