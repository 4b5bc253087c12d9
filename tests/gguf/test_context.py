"""A context beyond the model's own gives the key-values of llama.cpp's converter for YaRN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import UnsupportedError
from packager.gguf.context import stretched_config
from packager.model.config import ModelConfig, read_config
from packager.package.prepare import prepare
from testing.usual_route import convert_with_llama_cpp, read_gguf
from tests.reports import Reports
from tests.requests import request_for


def test_the_gguf_has_the_key_values_of_a_model_configured_with_yarn(
    small_model: Callable[..., Path], llama_cpp_source: Path, tmp_path: Path
) -> None:
    model = small_model("qwen3")
    by_hand = tmp_path / "by-hand"
    shutil.copytree(model, by_hand)
    config = json.loads((by_hand / "config.json").read_text())
    own = config["max_position_embeddings"]
    # As in Qwen3's model card, in the form of transformers 5.
    config["rope_parameters"] |= {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": own,
    }  # fmt: skip
    config["max_position_embeddings"] = 4 * own
    (by_hand / "config.json").write_text(json.dumps(config))
    gguf = convert_with_llama_cpp(by_hand, tmp_path / "m.gguf", "bf16", llama_cpp_source)
    expected = {
        key: value
        for key, value in read_gguf(gguf, llama_cpp_source)[0].items()
        if "rope" in key or "context" in key
    }
    assert expected["qwen3.rope.scaling.type"] == "yarn"

    progress = Reports()
    request = request_for(model, ("Q8_0",), context_length=4 * own)
    package = prepare(request, tmp_path, progress)

    metadata = package.text.metadata
    assert {key: metadata.get(key) for key in expected} == expected
    assert package.prompt.modelfile.parameters["num_ctx"] == 4 * own
    assert any("YaRN" in warning and " 4," in warning for warning in progress.warnings)
    assert any(f"{4 * own} tokens" in note for note in progress.notes)


def test_a_context_within_the_models_own_stretches_nothing(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    request = request_for(small_model("qwen3"), ("Q8_0",), context_length=64)
    package = prepare(request, tmp_path)
    assert not any("rope.scaling" in key for key in package.text.key_values)
    assert package.prompt.modelfile.parameters["num_ctx"] == 64


def config_with(values: dict[str, object], folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder / "config.json")


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"max_position_embeddings": 8, "rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"max_position_embeddings": 8, "rope_scaling": {"type": "linear"}}, "linear"),
        (
            {"max_position_embeddings": 8, "rope_parameters": {"full_attention": {}}},
            "rope_parameters",
        ),
        ({}, "max_position_embeddings"),
    ],
)
def test_a_context_is_not_stretched_where_positions_are_already_scaled(
    values: dict[str, object], fact: str, tmp_path: Path
) -> None:
    config = config_with(values, tmp_path)
    with pytest.raises(UnsupportedError, match=fact) as error:
        stretched_config(config, 16)
    assert str(config.path) in error.value.message
    assert "--context" in error.value.next_step


def test_older_configurations_get_yarn_under_rope_scaling(tmp_path: Path) -> None:
    config = config_with({"max_position_embeddings": 8, "rope_scaling": None}, tmp_path)
    assert stretched_config(config, 8) is config
    assert stretched_config(config, 16).values == {
        "max_position_embeddings": 16,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8,
        },
    }  # fmt: skip
