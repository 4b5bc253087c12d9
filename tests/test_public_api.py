"""The library's contract: its names, its errors, its installation."""

from __future__ import annotations

import ast
import json
import pydoc
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import packager
from packager import errors

ROOT = Path(__file__).parents[1]
VERBS = [
    name
    for name in packager.__all__
    if getattr(getattr(packager, name), "__module__", "").startswith("packager.verbs.")
    and not isinstance(getattr(packager, name), type)
]


def names_for_type_checkers() -> dict[str, str]:
    """The public names in packager/__init__.pyi, and their modules."""
    stub = Path(packager.__file__).with_suffix(".pyi")
    return {
        alias.asname or alias.name: statement.module or ""
        for statement in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_every_public_name_can_be_imported() -> None:
    for name in packager.__all__:
        assert getattr(packager, name) is not None


def test_type_checkers_see_the_public_names_and_no_others() -> None:
    assert {"__version__", *names_for_type_checkers()} == set(packager.__all__)


def test_type_checkers_see_the_objects_that_are_imported() -> None:
    for name, module in names_for_type_checkers().items():
        imported = getattr(packager, name)
        assert getattr(sys.modules[module], name) is imported


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="not_a_verb"):
        packager.not_a_verb  # noqa: B018


@pytest.mark.parametrize(
    "before",
    ["", "import packager.merge.adapters", "import packager.merge.adapters, packager.verbs.merge"],
)
def test_merge_is_the_verb_also_after_the_package_of_this_name_is_imported(before: str) -> None:
    code = (
        f"{before}\n"
        "from packager import merge\n"
        "import packager, packager.merge.adapters\n"
        "assert packager.merge is merge\n"
        "print(merge.__module__, merge.__name__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert result.stdout.split() == ["packager.verbs.merge", "merge"]


def test_every_command_that_works_on_models_has_a_verb() -> None:
    assert {
        "build", "doctor", "gguf", "inspect", "merge", "modelfile", "ollama", "plan", "prompt",
        "register", "run", "save_adapter",
    } == set(VERBS)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_a_verbs_parameters_and_docstring(verb: str) -> None:
    function: Callable[..., object] = getattr(packager, verb)
    text = pydoc.plain(pydoc.render_doc(function))
    assert f"{verb}(" in text
    assert function.__doc__ is not None
    assert function.__doc__.splitlines()[0] in text


def test_every_error_is_public_and_in_the_tree_and_has_its_exit_code() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.FtpackError)
    }
    assert sorted(classes) == sorted(errors.__all__)
    assert errors.__doc__ is not None
    for name in classes:
        assert name in errors.__doc__
    codes = {
        errors.FtpackError: 1,
        errors.UsageError: 2,
        errors.InputRefusedError: 3,
        errors.DaemonError: 4,
    }
    assert {kind: kind.exit_code for kind in codes} == codes


@pytest.mark.slow
@pytest.mark.parametrize("form", ["wheel", "editable"])
def test_an_installation_has_the_templates(form: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, system_site_packages=False)
    python = tmp_path / "venv" / "bin" / "python"
    # What ftpack needs is taken from where the tests run; ftpack itself is installed afresh.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text("\n".join(libraries))
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps"]
    if form == "wheel":
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", f"-o{tmp_path}", ROOT],
            check=True,
            capture_output=True,
        )
        (wheel,) = tmp_path.glob("*.whl")
        subprocess.run([*pip, wheel], check=True)
    else:
        # Built in isolation: pip runs the backend in the new environment, which has none.
        subprocess.run([*pip, "--editable", ROOT], check=True)
    code = (
        "import packager, json\n"
        "from packager.prompt.modelfile_text import render_modelfile\n"
        "from packager.runtime.model_settings import ModelSettings\n"
        "text = render_modelfile(ModelSettings(None, None, ('<end>',), {}), 'x.gguf')\n"
        "print(json.dumps([packager.__file__, text]))\n"
    )
    # Isolated: PYTHONPATH may name the sources that the tests run from.
    result = subprocess.run(
        [python, "-I", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    where, text = json.loads(result.stdout)
    assert Path(where).is_relative_to(tmp_path if form == "wheel" else ROOT)
    assert 'PARAMETER stop "<end>"' in text
