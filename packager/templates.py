"""The template texts that are part of ftpack, wherever it is installed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_IN_WHEEL = "_templates"


@cache
def read_template(name: str) -> str:
    """The text of a template, such as `Modelfile.jinja` or `ollama/chatml.gotmpl`, byte for byte.

    Raises:
        FileNotFoundError: if ftpack has no such template.
    """
    # Bytes: reading text would translate line ends, on which a prompt depends.
    return _root().joinpath(*name.split("/")).read_bytes().decode("utf-8")


def template_names(folder: str) -> list[str]:
    """The names of the templates in a folder, such as `ollama`."""
    return sorted(path.name for path in _root().joinpath(folder).iterdir() if path.is_file())


def _root() -> Traversable:
    """The folder of templates: inside the package in a wheel, beside it in a working tree."""
    packaged = files("packager").joinpath(_IN_WHEEL)
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "templates"
