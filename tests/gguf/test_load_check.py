"""Whether llama.cpp loads a model is known before weights are written; `--force` only warns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from packager.errors import UnsupportedError
from packager.gguf.convert import Conversion, GgufPrompt, ModelSource, convert
from packager.gguf.load_check import begin_load_check, require_loadable
from packager.gguf.quants import QUANTS
from packager.gguf.toolchain import find_toolchain
from packager.gguf.types import require_no_imatrix, type_quants, write_skeleton
from packager.model.checkpoint import FolderCheckpoint
from tests.reports import Reports

PROMPT = GgufPrompt({}, end_token_ids=(), begins_with_bos=False)


@pytest.fixture
def conversion(small_model: Callable[..., Path], tmp_path: Path) -> Conversion:
    checkpoint = FolderCheckpoint(small_model("llama"))
    source = ModelSource(checkpoint, checkpoint.files, "model")
    return convert(find_toolchain(), source, PROMPT, tmp_path)


def test_a_complete_model_is_loaded(conversion: Conversion, tmp_path: Path) -> None:
    write_skeleton(tmp_path / "m.gguf", conversion)

    with begin_load_check(tmp_path / "m.gguf") as reason:
        assert reason() is None


def test_a_missing_tensor_is_named(conversion: Conversion, tmp_path: Path) -> None:
    tensors = tuple(t for t in conversion.tensors if t.name != "blk.1.ffn_up.weight")
    write_skeleton(tmp_path / "m.gguf", replace(conversion, tensors=tensors))

    with begin_load_check(tmp_path / "m.gguf") as reason:
        assert "blk.1.ffn_up.weight" in (reason() or "")


def test_a_model_that_llama_cpp_refuses_is_refused_unless_forced() -> None:
    toolchain = find_toolchain()
    progress = Reports()
    require_loadable(None, toolchain, False, progress)
    with pytest.raises(UnsupportedError, match="no tensor x") as error:
        require_loadable("no tensor x", toolchain, False, progress)
    assert toolchain.version in error.value.message
    assert "--force" in error.value.next_step
    assert not progress.warnings

    require_loadable("no tensor x", toolchain, True, progress)

    assert any("no tensor x" in warning for warning in progress.warnings)


def test_only_requested_quants_may_not_need_an_importance_matrix(
    conversion: Conversion, tmp_path: Path
) -> None:
    write_skeleton(tmp_path / "m.gguf", conversion)
    quants = [QUANTS["Q4_0"], QUANTS["IQ2_XXS"]]
    typed = type_quants(conversion, quants, tmp_path / "m.gguf")

    require_no_imatrix(typed, [QUANTS["Q4_0"]])
    with pytest.raises(UnsupportedError, match="IQ2_XXS"):
        require_no_imatrix(typed, quants)
