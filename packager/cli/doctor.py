"""`ftpack doctor`: what is installed, found and reachable; and how to mend what is not."""

from __future__ import annotations

from typing import Any

import click

from packager.cli.options import console_for, output_options


@click.command("doctor")
@click.option("--install-toolchain", is_flag=True,
              help="Fetch llama.cpp's converter (with pip) into ftpack's cache.")  # fmt: skip
@click.option("--host", help="The Ollama server; by default OLLAMA_HOST, else this machine's.")
@output_options()
def command(**options: Any) -> None:
    """Tell what is installed, found and reachable, and how to mend it.

    \b
    Example:
      ftpack doctor
    """
    import json

    from packager.cli.console import result
    from packager.gguf.toolchain import install_toolchain
    from packager.verbs.doctor import check_up

    console = console_for(options)
    if options["install_toolchain"]:
        toolchain = install_toolchain(console)
        result(str(toolchain.folder))
        return
    findings = check_up(options["host"])
    if options["as_json"]:
        values = [
            {"what": item.what, "ok": item.is_ok, "found": item.found, "mend": item.mend}
            for item in findings
        ]
        result(json.dumps(values, indent=2))
    else:
        for item in findings:
            result(f"{'ok  ' if item.is_ok else 'MISS'} {item.what}: {item.found}")
            if item.mend:
                result(f"       {item.mend}")
    if any(item.is_needed and not item.is_ok for item in findings):
        raise click.exceptions.Exit(1)
