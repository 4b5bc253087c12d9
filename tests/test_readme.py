"""The commands and links in the README and in docs/ are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from packager.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# [text](target) and ![text](target), without an address of the Web.
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def commands(page: Path) -> list[str]:
    """The ftpack commands of a page, which stand in lines indented by four spaces."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        line.strip().partition(" #")[0].strip() for line in lines if line.startswith("    ftpack ")
    ]


def links(page: Path) -> list[str]:
    return _LINK.findall(page.read_text(encoding="utf-8"))


def test_the_readme_has_commands_and_fits_on_a_few_screens() -> None:
    assert len(commands(PAGES[0])) > 10
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize(
    "command", sorted({command for page in PAGES for command in commands(page)})
)
def test_ftpack_accepts_each_command(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    group = click.Context(cli)
    subcommand = cli.get_command(group, verb)
    assert subcommand is not None, verb

    subcommand.make_context(verb, arguments, parent=group)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_to_a_file(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(links(index))
