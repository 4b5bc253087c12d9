"""A quantized checkpoint looks like a plain one, and says what it cannot be."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from packager.errors import CorruptFileError, UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from packager.model.dequantize.formats import require_plain
from tests.model.dequantize.quantized import dequantized, opened, same, write

NAME = "model.layers.0.mlp.up_proj.weight"
SETTINGS = {"quant_method": "fp8"}


def tensors() -> dict[str, torch.Tensor]:
    return {
        NAME: torch.ones(8, 4).to(torch.float8_e4m3fn),
        f"{NAME}_scale_inv": torch.tensor(2.0),
        "model.norm.weight": torch.ones(4, dtype=torch.float16),
    }


def test_the_configuration_says_nothing_of_quantization(tmp_path: Path) -> None:
    nested = {"vocab_size": 7, "quantization_config": SETTINGS}
    found = dequantized(tmp_path / "m", tensors(), SETTINGS, text_config=nested)

    path = found.files["config.json"]
    config = json.loads(path.read_text())

    assert config == found.config
    assert config == {
        "model_type": "llama", "dtype": "bfloat16", "text_config": {"vocab_size": 7},
    }  # fmt: skip
    assert "quantization_config" in json.loads((tmp_path / "m" / "config.json").read_text())
    del found
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "float16"}, "F16"),
        ({"dtype": None, "torch_dtype": "float16"}, "F16"),
        ({"dtype": None, "text_config": {"dtype": "bfloat16"}}, "BF16"),
        ({"dtype": None}, "F16"),
    ],
    ids=["dtype", "torch_dtype", "text", "first tensor"],
)
def test_weights_get_the_configurations_element_type(
    config: dict[str, object], dtype: str, tmp_path: Path
) -> None:
    found = dequantized(tmp_path / "m", tensors(), SETTINGS, **config)

    assert found.tensors[NAME].dtype == dtype
    assert found.load(NAME).dtype == found.tensors[NAME].torch_dtype
    assert found.tensors["model.norm.weight"].dtype == "F16"


def test_pieces_are_the_whole_and_belong_to_the_caller(tmp_path: Path) -> None:
    found = dequantized(tmp_path / "m", tensors(), SETTINGS)

    pieces = list(found.blocks(NAME, 3))
    whole = torch.full((8, 4), 2.0, dtype=torch.bfloat16)
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    assert same(torch.cat(pieces), whole)

    found.load(NAME).zero_()
    assert same(found.load(NAME), whole)


def test_an_unknown_format_is_refused_by_name_before_anything_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"a": torch.ones(2)}, {"quant_method": "quip"})

    with pytest.raises(UnsupportedError, match="'quip'") as error:
        opened(folder)

    assert "mxfp4" in error.value.message
    assert "--base" in error.value.next_step


def test_bytes_of_no_known_meaning_are_refused_by_name(tmp_path: Path) -> None:
    made = tensors() | {"model.layers.0.mlp.up_proj.codes": torch.ones(2, dtype=torch.uint8)}

    with pytest.raises(CorruptFileError, match=r"up_proj\.codes"):
        dequantized(tmp_path / "m", made, SETTINGS)


def test_scales_of_activations_are_left_out_and_vectors_of_the_model_are_not(
    tmp_path: Path,
) -> None:
    attention = "model.layers.0.self_attn"
    made = tensors() | {
        f"{attention}.k_scale": torch.tensor(1.0),
        "model.layers.0.mlp.up_proj.input_scale": torch.ones(3),
        f"{attention}.q_scale": torch.ones(4),
    }

    found = dequantized(tmp_path / "m", made, SETTINGS)

    assert set(found.tensors) == {NAME, "model.norm.weight", f"{attention}.q_scale"}


@pytest.mark.parametrize("name", ["layer.weight", "layer.qweight", "layer.weight_packed"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_packed_weights_that_no_configuration_describes(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({name: torch.zeros(2, 2).to(dtype)}, tmp_path / "model.safetensors")

    with pytest.raises(CorruptFileError, match=name):
        require_plain(FolderCheckpoint(tmp_path), tmp_path / "config.json")


def test_masks_of_older_versions_of_transformers_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    mask, weight = torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.ones(4, 4)
    save_file({"h.0.attn.bias": mask, "h.0.weight": weight}, tmp_path / "model.safetensors")

    require_plain(FolderCheckpoint(tmp_path), tmp_path / "config.json")
