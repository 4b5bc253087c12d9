"""The examples of the library's page run, one after another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import OllamaDaemon

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
_EXAMPLE = re.compile(r"^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def examples(*, with_server: bool) -> str:
    """The page's examples as one program; those that need a server only `with_server`."""
    found = _EXAMPLE.finditer(PAGE.read_text(encoding="utf-8"))
    return "\n".join(
        match["code"] for match in found if with_server or "needs-ollama" not in match["mark"]
    )


@pytest.fixture
def folder(adapter: Callable[..., Path], small_model: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "lora").symlink_to(adapter("llama"))
    (tmp_path / "base").symlink_to(small_model("llama"))
    return tmp_path


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_page_has_examples() -> None:
    assert examples(with_server=False).count("from packager import") > 8
    assert "ollama(request" in examples(with_server=True)


@pytest.mark.slow
def test_the_examples_run_without_a_server(folder: Path) -> None:
    run_ = run(examples(with_server=False), folder)

    assert run_.returncode == 0, run_.stderr
    assert (folder / "mymodel-gguf" / "mymodel-Q5_K_M.gguf").is_file()
    assert (folder / "merged" / "config.json").is_file()
    assert (folder / "clean" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_examples_run_with_a_server(folder: Path, ollama_daemon: OllamaDaemon) -> None:
    run_ = run(examples(with_server=True), folder, OLLAMA_HOST=ollama_daemon.host)

    assert run_.returncode == 0, run_.stderr
    assert "('pirate',)" in run_.stdout
    assert "('mymodel',)" in run_.stdout
