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
# `packager/cli/main.py`: a path of the project in the text.
_PATH = re.compile(
    r"`((?:packager|tests|testing|bench|demo|scripts|docs|templates|Modelfiles)/[\w./-]*)`"
)
# [text](target) and ![text](target), except for addresses of the Web.
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def commands(page: Path) -> list[str]:
    """The ftpack commands of a page, which stand in lines indented by four spaces."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        line.strip().partition(" #")[0].strip() for line in lines if line.startswith("    ftpack ")
    ]


def links(page: Path) -> list[str]:
    return _LINK.findall(page.read_text(encoding="utf-8"))


def paths(page: Path) -> set[str]:
    """The project's files and folders that a page names; not patterns such as FAMILY.gotmpl."""
    return {
        path
        for path in _PATH.findall(page.read_text(encoding="utf-8"))
        if not re.search("[A-Z]{3}", path)
    }


def rooms() -> dict[str, list[str]]:
    """The modules of each room, by its folder, as the map in CONTRIBUTING.md has them."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| `packager/")]
    return {room.strip(" `"): re.findall(r"`(\w+)`", files) for room, _, files in rows}


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_path_in_the_text_exists(page: Path) -> None:
    assert [path for path in sorted(paths(page)) if not (ROOT / path).exists()] == []


def test_the_map_of_the_rooms_is_complete() -> None:
    modules = {
        f"{path.parent.relative_to(ROOT).as_posix()}/{path.stem}"
        for path in (ROOT / "packager").rglob("*.py")
        if not path.name.startswith("__") and path.parent.name != "cli"
    }
    assert {
        f"{room}{module}"
        for room, names in rooms().items()
        for module in names
        if room != "packager/cli/"
    } == modules


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(links(index))
