"""Converting leaves nothing behind: no files in the scratch folder, no checkpoint in memory."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packager.gguf.convert import GgufPrompt, ModelSource, convert
from packager.gguf.staging import link_files
from packager.gguf.toolchain import find_toolchain
from packager.model.checkpoint import FolderCheckpoint

PROMPT = GgufPrompt({"default": "{{ messages }}"}, end_token_ids=(), begins_with_bos=False)


@pytest.fixture
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collector")
def test_a_checkpoint_is_released_with_its_conversion(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A reference cycle would keep it, and its open files, until the end of the process."""
    checkpoint = FolderCheckpoint(small_model("qwen3"))
    is_alive = weakref.ref(checkpoint)
    source = ModelSource(checkpoint, checkpoint.files, "model")

    conversion = convert(find_toolchain(), source, PROMPT, tmp_path)
    assert conversion.checkpoint is checkpoint
    del checkpoint, source, conversion

    assert is_alive() is None
    assert not list(tmp_path.iterdir())


def test_unchanged_files_are_linked_and_a_changed_configuration_is_written(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = FolderCheckpoint(small_model("qwen3"))
    for folder in ("unchanged", "changed"):
        (tmp_path / folder).mkdir()

    link_files(checkpoint.files, checkpoint.config, tmp_path / "unchanged")
    config = checkpoint.config.changed({"rope_theta": 7.0})
    link_files(checkpoint.files, config, tmp_path / "changed")

    assert (tmp_path / "unchanged" / "config.json").resolve() == checkpoint.config.path.resolve()
    assert (tmp_path / "changed" / "tokenizer.json").is_symlink()
    changed = tmp_path / "changed" / "config.json"
    assert not changed.is_symlink()
    assert json.loads(changed.read_text()) == {**checkpoint.config.values, "rope_theta": 7.0}
