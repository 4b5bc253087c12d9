"""Every command of the README is one that ftpack takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from packager.cli.main import cli

README = Path(__file__).parents[1] / "README.md"
COMMANDS = [
    line.strip().partition(" #")[0].strip()
    for line in README.read_text(encoding="utf-8").splitlines()
    if line.startswith("    ftpack ")
]


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_taken(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    group = click.Context(cli)
    subcommand = cli.get_command(group, verb)
    assert subcommand is not None, verb

    subcommand.make_context(verb, arguments, parent=group)
