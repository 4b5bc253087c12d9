"""`ftpack modelfile` prints the Modelfile of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import ftpack
from tests.vision import VisionKind


@pytest.mark.slow
def test_the_modelfile_of_a_multimodal_model_names_both_files(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    result = ftpack(
        "modelfile", vision_model("gemma3"), "--from", "./a.gguf", "--from", "./mmproj-a.gguf",
        host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    froms = [line for line in result.stdout.splitlines() if line.startswith("FROM")]
    assert froms == ["FROM ./a.gguf", "FROM ./mmproj-a.gguf"]
