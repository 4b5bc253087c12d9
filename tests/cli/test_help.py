"""Every verb has help with an example, and the group's help lists every verb."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from packager.cli.main import cli

VERBS = cli.list_commands(click.Context(cli))


def test_the_groups_help_lists_every_verb() -> None:
    result = CliRunner().invoke(cli, ["--help"])

    assert result.exit_code == 0
    assert [verb for verb in VERBS if f"\n  {verb} " not in result.output] == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_a_verbs_help_shows_an_example(verb: str, option: str) -> None:
    result = CliRunner().invoke(cli, [verb, option])

    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {verb} ")
    assert re.search(rf"^ +ftpack {verb}\b", result.output, re.MULTILINE)
