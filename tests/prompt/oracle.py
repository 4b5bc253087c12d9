"""Ollama's own template package as an oracle, built once from its Go sources and cached."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "go_oracle" / "main.go"


@dataclass(frozen=True)
class GoResult:
    """Go's result of a job: the prompt, or the error."""

    prompt: str
    error: str


class GoOracle:
    """The built program.

    Args:
        program: its path.
    """

    def __init__(self, program: Path) -> None:
        self._program = program

    def render(self, jobs: Sequence[tuple[str, Sequence[Mapping[str, object]]]]) -> list[GoResult]:
        """The result of each Ollama template with its messages."""
        records = [{"template": source, "messages": list(turns)} for source, turns in jobs]
        result = subprocess.run(
            [self._program], input=json.dumps(records), capture_output=True, text=True, check=True
        )
        return [GoResult(**answer) for answer in json.loads(result.stdout)]


def build_oracle() -> GoOracle:
    """The oracle of the Ollama that scripts/install-ollama builds."""
    script = (ROOT / "scripts" / "install-ollama").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version=(\S+)$", script, re.MULTILINE)
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftpack"
    program = cache / "tests" / f"go-oracle-{key}"
    if not program.is_file():
        _build(version, program)
    return GoOracle(program)


def _build(version: str, program: Path) -> None:
    go = shutil.which("go")
    if go is None:
        missing = "Go is not installed; it builds the oracle of Ollama's templates"
        if os.environ.get("FTPACK_REQUIRE_OLLAMA") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(SOURCE, folder)
        for command in (
            ["mod", "init", "oracle"],
            ["get", f"github.com/ollama/ollama@v{version}"],
            ["build", "-o", "oracle", "."],
        ):
            done = subprocess.run(
                [go, *command], cwd=folder, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        partial = program.with_suffix(".partial")
        shutil.copy(folder / "oracle", partial)
        partial.replace(program)
