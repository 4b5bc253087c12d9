"""`ftpack completion`: what a shell needs to complete ftpack's words."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Example:
      ftpack completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    from packager.cli.console import result
    from packager.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    result(kind(cli, {}, "ftpack", "_FTPACK_COMPLETE").source())
