"""`ftpack inspect`: what a folder is, and what it needs; answered from headers alone."""

from __future__ import annotations

from typing import Any

import click

from packager.cli.options import console_for, output_options


@click.command("inspect")
@click.argument("source")
@click.option("--checkpoint", metavar="N|best|last", help="Which checkpoint of a Trainer.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the id.")
@output_options()
def command(source: str, **options: Any) -> None:
    """Tell what SOURCE is, which base it needs, and its checkpoints.

    \b
    Example:
      ftpack inspect ./outputs
    """
    import json

    from packager.cli.console import result
    from packager.verbs.inspect import inspect

    found = inspect(source, options["checkpoint"], options["revision"], console_for(options))
    if options["as_json"]:
        result(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        if isinstance(value, list):
            result(f"{key}:")
            for item in value:
                result(f"  {_line(item)}")
        elif value is not None:
            result(f"{key}: {value}")


def _line(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    shown = {key: value for key, value in item.items() if value not in (None, False)}
    return ", ".join(key if value is True else f"{key} {value}" for key, value in shown.items())
