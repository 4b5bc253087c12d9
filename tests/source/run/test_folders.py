"""Files that describe an adapter are found in its run's folder if its own folder has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.progress import Silent
from packager.source.open import Source, open_source
from packager.source.run.record import read_training

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def open_(path: Path, checkpoint: str | None = None) -> Source:
    return open_source(str(path), checkpoint, None, Silent())


def of_tokenizer(source: Source) -> dict[str, Path]:
    """The folder of each of the tokenizer's files."""
    return {name: source.files[name].path.parent for name in TOKENIZER if name in source.files}


@pytest.fixture
def run(adapter: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A run whose tokenizer is in its folder, and its adapter alone in a subfolder."""

    def make(inside: str) -> Path:
        folder = tmp_path / "outputs"
        shutil.copytree(adapter("llama"), folder)
        (folder / "notes.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
        (folder / inside).mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).rename(folder / inside / name)
        return folder

    return make


@pytest.mark.parametrize("inside", ["train", "checkpoint-7", "checkpoint-7/train"])
def test_the_tokenizer_of_the_run_is_the_adapters(inside: str, run: Callable[[str], Path]) -> None:
    folder = run(inside)

    source = open_(folder)

    assert source.folder == folder / inside
    assert of_tokenizer(source) == dict.fromkeys(TOKENIZER, folder)
    assert "notes.json" not in source.files
    assert "chat_template.jinja" in source.reason
    assert source.files["chat_template.jinja"].path == folder / "chat_template.jinja"


@pytest.mark.parametrize("inside", ["train", "checkpoint-7/train"])
def test_an_adapter_given_by_itself_belongs_to_the_run_that_its_trainer_saved(
    inside: str, run: Callable[[str], Path]
) -> None:
    folder = run(inside)
    (folder / "trainer_log.jsonl").touch()
    (folder / inside).parent.joinpath("training_args.bin").touch()

    assert of_tokenizer(open_(folder / inside)) == dict.fromkeys(TOKENIZER, folder)
    training = read_training(folder / inside)
    assert training is not None
    assert training.known_by == folder / "trainer_log.jsonl"


def test_files_above_an_adapter_without_a_trainers_mark_are_not_used(
    run: Callable[[str], Path],
) -> None:
    assert of_tokenizer(open_(run("train") / "train")) == {}


def test_two_tokenizers_are_not_mixed(run: Callable[[str], Path]) -> None:
    folder = run("train")
    shutil.copy(folder / "tokenizer.json", folder / "train")

    source = open_(folder)

    assert of_tokenizer(source) == {"tokenizer.json": folder / "train"}
    assert "above" not in source.reason


def test_an_adapters_own_chat_template_precedes_the_runs(run: Callable[[str], Path]) -> None:
    folder = run("train")
    (folder / "train" / "chat_template.jinja").write_text("{{ messages }}")

    assert of_tokenizer(open_(folder)) == {
        "tokenizer.json": folder,
        "tokenizer_config.json": folder,
        "chat_template.jinja": folder / "train",
    }


def test_a_full_models_training_checkpoint_has_the_runs_tokenizer(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "outputs" / "checkpoint-7"
    shutil.copytree(small_model("llama"), checkpoint)
    own = [path for path in checkpoint.iterdir() if path.name.startswith(("tok", "chat", "spec"))]
    for path in own:
        path.rename(checkpoint.parent / path.name)

    source = open_(tmp_path / "outputs", "last")

    assert source.model is not None
    assert source.model.config.values["model_type"] == "llama"
    assert {path.name for path in own} <= set(source.files)
