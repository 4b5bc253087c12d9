"""The library's contract: its names, its errors, its installation."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import packager
from packager import errors

ROOT = Path(__file__).parents[1]


def test_every_public_name_can_be_imported() -> None:
    for name in packager.__all__:
        assert getattr(packager, name) is not None


def test_every_error_is_public_drawn_in_the_tree_and_has_its_exit_code() -> None:
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
        "from packager.prompt.modelfile_spec import ModelfileSpec, render_modelfile\n"
        "text = render_modelfile(ModelfileSpec(None, None, ('<end>',), {}), 'x.gguf')\n"
        "print(json.dumps([packager.__file__, text]))\n"
    )
    result = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    where, text = json.loads(result.stdout)
    assert Path(where).is_relative_to(tmp_path if form == "wheel" else ROOT)
    assert 'PARAMETER stop "<end>"' in text
