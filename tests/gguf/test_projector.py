"""Multimodal models: every tensor is in a GGUF, or a warning or an error names what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from packager.errors import AdapterMismatchError, MissingWeightsError
from packager.gguf.convert import Conversion, GgufPrompt, ModelSource, convert
from packager.gguf.projector import Projector, find_projector, require_targets_held
from packager.gguf.toolchain import Toolchain, find_toolchain
from packager.model.checkpoint import FolderCheckpoint
from tests.reports import Reports
from tests.vision import make_vision_model

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Model:
    toolchain: Toolchain
    source: ModelSource
    text: Conversion
    scratch: Path

    def projector(self, progress: Reports, *, is_text_only: bool = False) -> Projector | None:
        return find_projector(
            self.toolchain, self.text, self.source, self.scratch, progress,
            is_text_only=is_text_only,
        )  # fmt: skip

    def tensor(self, part: str) -> str:
        """A tensor of the text model or of the encoder of images."""
        return next(
            name
            for name in self.source.checkpoint.tensors
            if part in name and name.endswith("q_proj.weight")
        )


@pytest.fixture(scope="module")
def model(llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    scratch = tmp_path_factory.mktemp("scratch")
    folder = make_vision_model("smolvlm", scratch / "model", llama_cpp_source)
    checkpoint = FolderCheckpoint(folder)
    source = ModelSource(checkpoint, checkpoint.files, "model")
    prompt = GgufPrompt({}, end_token_ids=(), begins_with_bos=False)
    toolchain = find_toolchain()
    return Model(toolchain, source, convert(toolchain, source, prompt, scratch), scratch)


def test_the_projector_holds_what_the_text_model_does_not(model: Model) -> None:
    progress = Reports()

    projector = model.projector(progress)

    assert projector is not None
    assert model.tensor("vision") in projector.conversion.reads
    assert model.tensor("text") not in projector.conversion.reads
    assert not progress.warnings


def test_text_only_names_what_is_left_out(model: Model) -> None:
    progress = Reports()

    assert model.projector(progress, is_text_only=True) is None

    (warning,) = progress.warnings
    assert "vision" in warning


def test_a_model_without_a_preprocessor_is_refused(model: Model) -> None:
    files = {name: f for name, f in model.source.files.items() if name not in PREPROCESSORS}
    source = ModelSource(model.source.checkpoint, files, "model")
    with pytest.raises(MissingWeightsError, match=PREPROCESSORS[0]) as error:
        find_projector(
            model.toolchain, model.text, source, model.scratch, Reports(), is_text_only=False
        )
    assert str(source.checkpoint.config.path.parent) in error.value.message


def test_a_tuned_tensor_that_no_gguf_holds_is_refused(model: Model) -> None:
    text, vision = model.tensor("text"), model.tensor("vision")
    progress = Reports()

    require_targets_held({text, vision}, model.text, model.projector(progress), progress,
                         is_text_only=False)  # fmt: skip
    require_targets_held({text}, model.text, None, progress, is_text_only=True)
    require_targets_held((), model.text, None, progress, is_text_only=False)
    assert not progress.warnings

    with pytest.raises(AdapterMismatchError, match=vision):
        require_targets_held({text, vision}, model.text, None, progress, is_text_only=False)
    with pytest.raises(AdapterMismatchError, match=vision) as error:
        require_targets_held({vision}, model.text, None, progress, is_text_only=True)
    assert "--text-only" in error.value.next_step


def test_text_only_names_the_tuned_tensors_that_it_leaves_out(model: Model) -> None:
    text, vision = model.tensor("text"), model.tensor("vision")
    progress = Reports()

    require_targets_held({text, vision}, model.text, None, progress, is_text_only=True)

    (warning,) = progress.warnings
    assert vision in warning
    assert text not in warning
