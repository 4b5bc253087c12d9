"""A context beyond the model's own is what llama.cpp's converter writes for YaRN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import UnsupportedError
from packager.gguf.context import stretched_config
from packager.package.plan import Request
from packager.package.prepare import prepare
from testing.usual_route import convert_with_llama_cpp, read_gguf
from tests.told import Told


def test_the_gguf_says_what_the_converter_says_of_a_model_with_yarn(
    small_model: Callable[..., Path], llama_cpp_source: Path, tmp_path: Path
) -> None:
    model = small_model("qwen3")
    by_hand = tmp_path / "by-hand"
    shutil.copytree(model, by_hand)
    config = json.loads((by_hand / "config.json").read_text())
    own = config["max_position_embeddings"]
    # As Qwen3's model card has it, in the form of transformers 5.
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

    told = Told()
    package = prepare(Request(str(model), ("Q8_0",), context_length=4 * own), told)

    made = {key: item.value for key, item in package.conversion.key_values.items()}
    assert {key: made.get(key) for key in expected} == expected
    assert package.modelfile.parameters["num_ctx"] == 4 * own
    assert any("stretches every position by 4" in said for said in told.warnings)
    assert any("keys and values take" in said for said in told.notes)


def test_a_context_inside_the_models_own_stretches_nothing(
    small_model: Callable[..., Path],
) -> None:
    package = prepare(Request(str(small_model("qwen3")), ("Q8_0",), context_length=64))
    assert not any("rope.scaling" in key for key in package.conversion.key_values)
    assert package.modelfile.parameters["num_ctx"] == 64


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_position_embeddings": 8, "rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"max_position_embeddings": 8, "rope_scaling": {"type": "linear"}}, "linear"),
        ({"max_position_embeddings": 8, "rope_parameters": {"full_attention": {}}}, "each kind"),
        ({}, "max_position_embeddings"),
    ],
)
def test_positions_of_another_kind_are_refused(
    config: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=said) as caught:
        stretched_config(path, 16)
    assert "--context" in caught.value.next_step


def test_older_configurations_have_it_under_rope_scaling(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"max_position_embeddings": 8, "rope_scaling": None}))
    assert stretched_config(path, 8) is None
    changed = stretched_config(path, 16)
    assert changed == {
        "max_position_embeddings": 16,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8,
        },
    }  # fmt: skip
