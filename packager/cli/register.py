"""`ftpack register`: what `ftpack ollama` does after building."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.options import (
    QuantType,
    console_for,
    conversations_option,
    output_options,
)


@click.command("register")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--name", help="The model's name in Ollama; by default the bundle's.")
@click.option("--quant", "quants", multiple=True, type=QuantType(), metavar="Q",
              help="Which of the bundle's quants; by default all.")  # fmt: skip
@click.option("--host", help="The Ollama server; by default OLLAMA_HOST, else this machine's.")
@click.option("--force", is_flag=True, help="Give the name even where a prompt differs.")
@conversations_option()
@output_options()
def command(bundle: Path, conversations: Path | None, **options: Any) -> None:
    """Register the finished BUNDLE with Ollama, read it back, and let it answer.

    \b
    Example:
      ftpack register ./mymodel-gguf --name mymodel
    """
    import json

    from packager.bundle.bundle import read_bundle, verify_bundle
    from packager.cli.console import result
    from packager.cli.report import registration_json, report_registered
    from packager.errors import SourceNotFoundError
    from packager.runtime.daemon import Daemon
    from packager.verbs.register import model_names, register, require_store_space
    from packager.verify.renderers import conversations_with

    console = console_for(options)
    manifest = read_bundle(bundle)
    wanted = options["quants"] or tuple(file.quant for file in manifest.ggufs)
    files = [file for file in manifest.ggufs if file.quant in wanted]
    if len(files) < len(set(wanted)):
        raise SourceNotFoundError(
            f"{bundle} holds {', '.join(file.quant for file in manifest.ggufs)}, not all of "
            f"{', '.join(wanted)}.",
            next_step="Choose among them with --quant, or make the others with `ftpack gguf`.",
        )
    name = options["name"] or manifest.name
    model_names(name, [file.quant for file in files])
    verify_bundle(bundle)
    daemon = Daemon(options["host"])
    daemon.version()
    beside = [manifest.projector] if manifest.projector else []
    require_store_space(daemon, [file.size_bytes for file in (*files, *beside)])
    registered = register(
        bundle, manifest, files, name, daemon, console,
        conversations=conversations_with(conversations), force=options["force"],
    )  # fmt: skip
    if options["as_json"]:
        result(json.dumps(registration_json(registered), indent=2))
    report_registered(registered, console)
