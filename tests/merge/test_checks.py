"""A merge is written only if its weights are complete: each tensor there, in its shape."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from packager.errors import MissingWeightsError
from packager.verbs.merge import merge
from tests.reports import Reports
from tests.requests import request_for


@pytest.mark.parametrize(
    ("names", "faults"),
    [
        (
            ["model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"],
            "model.layers.0.input_layernorm.weight is missing; "
            "model.layers.1.mlp.up_proj.weight is missing",
        ),
        (["model.embed_tokens.weight"], "model.embed_tokens.weight is missing"),
    ],
    ids=["layers", "the embedding"],
)
def test_a_base_that_lacks_tensors_is_refused_unless_forced(
    names: list[str],
    faults: str,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = shutil.copytree(small_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    lora = adapter("llama", targets=["q_proj"])

    with pytest.raises(MissingWeightsError, match=re.escape(f": {faults}.")) as caught:
        merge(request_for(lora, base=base), tmp_path / "merged")
    assert str(base / "config.json") in caught.value.message
    assert "--force" in caught.value.next_step
    assert not (tmp_path / "merged").exists()

    progress = Reports()
    merge(request_for(lora, base=base, force=True), tmp_path / "merged", progress)
    assert any(faults in warning for warning in progress.warnings)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_tensor_of_another_shape_is_refused(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = shutil.copytree(small_model("qwen3moe"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    norm = "model.layers.1.input_layernorm.weight"
    width = tensors[norm].shape[0]
    tensors[norm] = tensors[norm][: width // 2].clone()
    experts = [name for name in tensors if ".layers.0.mlp.experts.7." in name]
    for name in experts:
        del tensors[name]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})

    with pytest.raises(MissingWeightsError) as caught:
        merge(request_for(model), tmp_path / "merged")

    assert f"{norm} is [{width // 2}], not [{width}]" in caught.value.message
    assert "model.layers.0.mlp.experts.gate_up_proj is [7, " in caught.value.message
    assert len(experts) == 3


def test_a_full_model_that_is_only_an_adapter_is_refused(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(small_model("llama") / "config.json", model)
    shutil.copy(adapter("llama") / "adapter_model.safetensors", model / "model.safetensors")

    with pytest.raises(MissingWeightsError, match=r"model\.embed_tokens\.weight") as caught:
        merge(request_for(model), tmp_path / "merged")

    assert "adapter_config.json" in caught.value.next_step
