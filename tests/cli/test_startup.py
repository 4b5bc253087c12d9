"""What is asked often answers at once: no heavy library is imported for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "peft", "llama_cpp", "numpy", "rich", "ollama", "huggingface_hub"}


def modules_after(*arguments: str) -> set[str]:
    code = (
        "import sys\n"
        f"sys.argv = ['ftpack', *{list(arguments)!r}]\n"
        "from packager.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.stderr.write('\\n' + ' '.join(m for m in sys.modules if '.' not in m))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ollama", "--help"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    assert not modules_after(*arguments) & HEAVY


def test_inspect_imports_no_heavy_library(adapter: Callable[..., Path]) -> None:
    assert not modules_after("inspect", str(adapter("llama"))) & HEAVY
