"""A run opens each configuration and tokenizer file of its source at most once."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packager.model.template_files import find_template, special_tokens
from packager.progress import Silent
from packager.quality.pair import find_pair
from packager.source.inputs import find_inputs
from packager.source.run.record import training_length
from packager.source.source_options import SourceOptions
from packager.source.vocabulary_rows import require_rows
from tests.source.base.test_full_precision import quantized_copy

NAMES = {"config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"}
_recorders: list[Counter[Path]] = []


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _recorders and isinstance(arguments[0], str):
        path = Path(arguments[0])
        if path.name in NAMES:
            _recorders[-1][path.absolute()] += 1


# An audit hook sees every file that Python opens; it cannot be removed again.
sys.addaudithook(_record)


@contextmanager
def recorded_opens() -> Iterator[Counter[Path]]:
    """How often each file is opened in the block."""
    _recorders.append(Counter())
    try:
        yield _recorders[-1]
    finally:
        _recorders.pop()


def use_everything(source: Path) -> None:
    """Ask for everything that packaging needs to know of a source."""
    inputs = find_inputs(SourceOptions(str(source)), Silent())
    require_rows(inputs, inputs.model.config, inputs.model.tensors)
    assert inputs.vocabulary.token_of
    assert find_template(inputs.files) is not None
    assert special_tokens(inputs.files) is not None
    assert inputs.base is None or inputs.base_vocabulary.token_of
    assert inputs.source.training is not None
    training_length(inputs.own_files, inputs.base_files)
    for adapter in inputs.adapters:
        assert inputs.base is not None
        find_pair(inputs.base, adapter)


@pytest.fixture
def lora(adapter: Callable[..., Path], tmp_path: Path) -> Callable[[Path], Path]:
    """An adapter of a Trainer that records this base."""

    def make(base: Path) -> Path:
        folder = tmp_path / "lora"
        shutil.copytree(adapter("llama"), folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "trainer_state.json").write_text("{}")
        return folder

    return make


def test_of_an_adapter_and_its_base(
    lora: Callable[[Path], Path], small_model: Callable[..., Path]
) -> None:
    folder = lora(small_model("llama"))

    with recorded_opens() as opens:
        use_everything(folder)

    assert opens[folder / "adapter_config.json"] == 1
    assert opens[small_model("llama") / "config.json"] == 1
    assert set(opens.values()) == {1}, opens


@pytest.mark.parametrize("is_original_there", [True, False])
def test_of_a_quantized_base_and_its_16_bit_original(
    is_original_there: bool,
    lora: Callable[[Path], Path],
    small_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    quantized = quantized_copy(small_model("llama"), tmp_path / "tiny-bnb-4bit")
    if is_original_there:
        shutil.copytree(small_model("llama"), tmp_path / "tiny")
    folder = lora(quantized)

    with recorded_opens() as opens:
        use_everything(folder)

    assert opens[quantized / "config.json"] == 1
    assert opens[tmp_path / "tiny" / "config.json"] == is_original_there
    assert set(opens.values()) <= {0, 1}, opens


def test_of_a_full_model_with_the_record_of_its_training(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "merged_16bit"
    shutil.copytree(small_model("llama"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"unsloth_version": "2025.9.1"}))

    with recorded_opens() as opens:
        use_everything(model)

    assert opens[model / "config.json"] == 1
    assert set(opens.values()) == {1}, opens
