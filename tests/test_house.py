"""The house rules that no linter checks, on file names, imports, parameters and results."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "packager"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def test_a_file_name_occurs_once_but_for_a_verb_and_its_command() -> None:
    folders: dict[str, list[str]] = {}
    for path in FILES:
        folders.setdefault(path.name, []).append(path.parent.name)

    twice = {name: sorted(where) for name, where in folders.items() if len(where) > 1}
    assert {name for name, where in twice.items() if where != ["cli", "verbs"]} == set()


def test_no_file_imports_more_than_twenty_of_our_modules() -> None:
    imported = {
        path: {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("packager")
        }
        for path in PACKAGE.rglob("*.py")
    }

    assert {path.name: len(names) for path, names in imported.items() if len(names) > 20} == {}


def test_no_function_has_more_than_six_parameters() -> None:
    counts = {
        f"{path.name}: {node.name}": len(
            [
                argument
                for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if argument.arg not in ("self", "cls")
            ]
        )
        for path, node in functions()
    }

    assert {name: count for name, count in counts.items() if count > 6} == {}


def test_a_function_that_returns_a_tuple_of_unlike_things_says_what_they_are() -> None:
    silent = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path, node in functions()
        if isinstance(node.returns, ast.Subscript)
        and ast.unparse(node.returns).startswith("tuple[")
        and len(kinds := ast.unparse(node.returns.slice).strip("()").split(", ")) > 1
        and len(set(kinds)) > 1
        and "..." not in kinds
        and not (ast.get_docstring(node) or "")
    ]

    assert silent == []
