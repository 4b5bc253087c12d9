"""Targets by names and shapes alone are the same as PEFT's, or they are left to PEFT."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from packager.merge.plain.peft_targets import targets_by_peft
from packager.merge.plain.targets import targets_by_name
from packager.model.adapter import Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import read_config
from packager.model.derived import Derived
from packager.model.tensor_file import TensorInfo
from packager.source.adapter_folder import open_adapter


def changed(
    adapter: Adapter,
    settings: Mapping[str, object] | None = None,
    tensors: Mapping[str, TensorInfo] | None = None,
) -> Any:
    """An adapter with other settings or tensors, as if its files had them."""
    config = replace(adapter.config, raw={**adapter.config.raw, **(settings or {})})
    weights = adapter.weights if tensors is None else SimpleNamespace(tensors=tensors)
    return SimpleNamespace(folder=adapter.folder, config=config, weights=weights)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True, "r": 8}, {"targets": ["v_proj", "down_proj"], "alpha": 7}],
    ids=["plain", "rslora", "some"],
)
def test_the_targets_are_the_same_as_pefts(
    kind: str,
    options: dict[str, Any],
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
) -> None:
    if kind == "phi3" and "targets" in options:
        options = options | {"targets": ["qkv_proj", "down_proj"]}
    base, lora = FolderCheckpoint(small_model(kind)), open_adapter(adapter(kind, **options))

    targets = targets_by_name(base, lora)

    assert targets is not None
    assert targets == targets_by_peft(base, lora)


@pytest.mark.parametrize(
    "setting",
    [
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"layers_to_transform": [0]},
        {"exclude_modules": ["v_proj"]},
        {"target_modules": r".*\.q_proj"},
        {"target_modules": ["q_proj", "nothing"]},
        {"fan_in_fan_out": True},
        {"use_something_new": True},
        {"r": 8},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_are_not_plain_are_left_to_peft(
    setting: dict[str, Any], small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    base, lora = FolderCheckpoint(small_model("llama")), open_adapter(adapter("llama"))

    assert targets_by_name(base, changed(lora, setting)) is None


def test_tensors_that_do_not_fit_are_left_to_peft(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    base, lora = FolderCheckpoint(small_model("llama")), open_adapter(adapter("llama"))
    tensors = dict(lora.weights.tensors)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    fewer = {key: info for key, info in tensors.items() if key != name}
    extra = TensorInfo("base_model.model.lm_head.weight", (8, 8), "F32")

    other = TensorInfo(name, (3, 16), "F32")

    assert targets_by_name(base, changed(lora, tensors=fewer)) is None
    assert targets_by_name(base, changed(lora, tensors=tensors | {extra.name: extra})) is None
    assert targets_by_name(base, changed(lora, tensors=tensors | {name: other})) is None


def test_square_matrices_alone_are_left_to_peft(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    base = FolderCheckpoint(small_model("llama"))
    lora = open_adapter(adapter("llama", targets=["q_proj"]))
    assert base.tensors["model.layers.0.self_attn.q_proj.weight"].shape == (256, 256)

    assert targets_by_name(base, lora) is None


def test_a_plain_adapter_is_merged_without_peft_and_transformers(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from packager.model.checkpoint import FolderCheckpoint\n"
        "from packager.merge.route import merge_one\n"
        "from packager.source.adapter_folder import open_adapter\n"
        "base, lora = map(Path, sys.argv[1:])\n"
        "merged = merge_one(FolderCheckpoint(base), open_adapter(lora), 'cpu')\n"
        "merged.load('model.layers.0.mlp.down_proj.weight')\n"
        "sys.exit(', '.join({'peft', 'transformers'} & sys.modules.keys()) or 0)"
    )
    command = [sys.executable, "-c", script, str(small_model("llama")), str(adapter("llama"))]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}], ids=["unsaid", "tied"])
def test_a_head_that_can_be_tied_is_left_to_peft(
    config: dict[str, Any],
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    lora = open_adapter(adapter("llama", targets=["down_proj", "lm_head"]))
    # PEFT saves the base's embeddings with them, by default.
    matrices = {name: info for name, info in lora.weights.tensors.items() if ".lora_" in name}
    untied = FolderCheckpoint(small_model("llama"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = Derived(untied, read_config(tmp_path / "config.json"))

    assert targets_by_name(untied, changed(lora, tensors=matrices)) is not None
    assert targets_by_name(base, changed(lora, tensors=matrices)) is None
