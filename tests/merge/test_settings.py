"""Settings of the wrong type are refused by name, whatever PEFT makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import CorruptFileError, InputRefusedError
from packager.merge.route import merge_one
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.source.open import open_source
from tests.merge import tiny
from tests.merge.methods import METHODS

HUGE = 10**30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base("tied", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in folders:
            folder = tmp_path_factory.mktemp("adapters") / method
            folders[method] = tiny.make_adapter(base, "tied", METHODS[method], folder)
        return folders[method]

    return make


def merge(base: Path, adapter: Path) -> None:
    opened = open_source(str(adapter), None, None, Silent()).adapter
    assert opened is not None
    merge_one(FolderCheckpoint(base), opened, "cpu")


def edited(folder: Path, name: str, key: str, value: object, to: Path) -> Path:
    shutil.copytree(folder, to)
    (to / name).write_text(json.dumps(json.loads((to / name).read_text()) | {key: value}))
    return to


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("lora", "r", 0),
        ("lora", "r", True),
        ("lora", "lora_alpha", float("nan")),
        ("lora", "lora_alpha", 0),
        ("lora", "lora_alpha", [16]),
        ("lora", "alpha_pattern", "x"),
        ("lora", "bias", ["all"]),
        ("lora", "corda_config", True),
        ("lora", "target_modules", {"q_proj": 1}),
        ("loha", "alpha", float("inf")),
        ("loha", "alpha", 0),
        ("loha", "alpha_pattern", [[1]]),
        ("loha", "exclude_modules", [[1]]),
        ("loha", "r", "4"),
    ],
)
def test_an_adapter_setting_of_the_wrong_type_is_refused(
    method: str,
    key: str,
    value: object,
    base: Path,
    adapter: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    broken = edited(adapter(method), "adapter_config.json", key, value, tmp_path / "broken")

    with pytest.raises(InputRefusedError) as refused:
        merge(base, broken)

    assert "adapter_config.json" in refused.value.message
    assert f"`{key}`" in refused.value.message
    assert refused.value.next_step


@pytest.mark.parametrize("method", ["lora", "dora", "loha"])
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("rank_pattern", {"v_proj": 4, "q_proj": 0}, "'q_proj' '0'"),
        ("rank_pattern", {"q_proj": -1}, "'q_proj' '-1'"),
        ("rank_pattern", {"q_proj": "4"}, "'q_proj' '4'"),
        ("rank_pattern", {"q_proj": True}, "'q_proj' 'True'"),
        ("rank_pattern", {"((": 4}, "'(('"),
        ("alpha_pattern", {"q_proj": "x"}, "'q_proj' 'x'"),
        ("alpha_pattern", {"q_proj": 0}, "'q_proj' '0'"),
        ("alpha_pattern", {"q_proj": float("nan")}, "'q_proj' 'nan'"),
        ("target_modules", "((", "'(('"),
        ("exclude_modules", "(", "'('"),
    ],
)
def test_an_invalid_pattern_or_rank_is_blamed_on_the_adapter_and_not_on_the_base(
    method: str,
    key: str,
    value: object,
    named: str,
    base: Path,
    adapter: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    broken = edited(adapter(method), "adapter_config.json", key, value, tmp_path / "broken")

    with pytest.raises(CorruptFileError) as refused:
        merge(base, broken)

    assert str(broken / "adapter_config.json") in refused.value.message
    assert f"`{key}`" in refused.value.message
    assert named in refused.value.message
    assert "--base" not in refused.value.next_step


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", HUGE),
        ("vocab_size", -1),
        ("num_hidden_layers", None),
        ("dtype", {"a": 1}),
        ("architectures", 3),
        ("rope_parameters", []),
    ],
)
def test_a_base_setting_of_the_wrong_type_is_refused(
    key: str, value: object, base: Path, adapter: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = edited(base, "config.json", key, value, tmp_path / "broken")

    with pytest.raises(InputRefusedError, match=r"config\.json") as refused:
        merge(broken, adapter("loha"))

    assert refused.value.next_step


def test_an_invalid_regular_expression_is_refused(
    base: Path, adapter: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = adapter("loha")
    broken = edited(folder, "adapter_config.json", "exclude_modules", "(", tmp_path / "broken")

    with pytest.raises(InputRefusedError, match=r"adapter_config\.json"):
        merge(base, broken)


@pytest.mark.parametrize("method", ["lora", "loha"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_integer_matrices_are_refused(
    method: str,
    dtype: torch.dtype,
    base: Path,
    adapter: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(adapter(method), folder)
    weights = folder / "adapter_model.safetensors"
    tensors = {name: (10 * value).to(dtype) for name, value in load_file(weights).items()}
    save_file(tensors, weights)

    with pytest.raises(InputRefusedError, match=r"\((I8|BOOL|torch\.int8|torch\.bool)\)"):
        merge(base, folder)
