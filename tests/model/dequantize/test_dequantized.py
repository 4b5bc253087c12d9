"""A quantized checkpoint reads like a plain one; unsupported ones are refused with a reason."""

from __future__ import annotations

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


def test_the_configuration_does_not_mention_quantization(tmp_path: Path) -> None:
    nested = {"vocab_size": 7, "quantization_config": SETTINGS}
    config = dequantized(tmp_path / "m", tensors(), SETTINGS, text_config=nested).config

    assert config.is_changed
    assert config.values == {
        "model_type": "llama", "dtype": "bfloat16", "text_config": {"vocab_size": 7},
    }  # fmt: skip
    assert config.path == tmp_path / "m" / "config.json"
    assert "quantization_config" in json.loads(config.path.read_text())


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
    checkpoint = dequantized(tmp_path / "m", tensors(), SETTINGS, **config)

    assert checkpoint.tensors[NAME].dtype == dtype
    assert checkpoint.load(NAME).dtype == checkpoint.tensors[NAME].torch_dtype
    assert checkpoint.tensors["model.norm.weight"].dtype == "F16"


def test_pieces_form_the_tensor_and_belong_to_the_caller(tmp_path: Path) -> None:
    checkpoint = dequantized(tmp_path / "m", tensors(), SETTINGS)

    pieces = list(checkpoint.blocks(NAME, 3))
    whole = torch.full((8, 4), 2.0, dtype=torch.bfloat16)
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    assert same(torch.cat(pieces), whole)

    checkpoint.load(NAME).zero_()
    assert same(checkpoint.load(NAME), whole)


def test_an_unknown_format_is_refused_by_name_before_anything_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"a": torch.ones(2)}, {"quant_method": "quip"})

    with pytest.raises(UnsupportedError, match="'quip'") as error:
        opened(folder)

    assert "mxfp4" in error.value.message
    assert "--base" in error.value.next_step


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    unknown = tensors() | {"model.layers.0.mlp.up_proj.codes": torch.ones(2, dtype=torch.uint8)}

    with pytest.raises(CorruptFileError, match=r"up_proj\.codes"):
        dequantized(tmp_path / "m", unknown, SETTINGS)


def test_activation_scales_are_omitted_and_the_models_own_vectors_are_kept(
    tmp_path: Path,
) -> None:
    attention = "model.layers.0.self_attn"
    with_scales = tensors() | {
        f"{attention}.k_scale": torch.tensor(1.0),
        "model.layers.0.mlp.up_proj.input_scale": torch.ones(3),
        f"{attention}.q_scale": torch.ones(4),
    }

    checkpoint = dequantized(tmp_path / "m", with_scales, SETTINGS)

    assert set(checkpoint.tensors) == {NAME, "model.norm.weight", f"{attention}.q_scale"}


@pytest.mark.parametrize("name", ["layer.weight", "layer.qweight", "layer.weight_packed"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_packed_weights_without_a_description_are_refused(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({name: torch.zeros(2, 2).to(dtype)}, tmp_path / "model.safetensors")

    with pytest.raises(CorruptFileError, match=name):
        require_plain(FolderCheckpoint(tmp_path))


def test_masks_of_older_transformers_versions_are_not_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    mask, weight = torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.ones(4, 4)
    save_file({"h.0.attn.bias": mask, "h.0.weight": weight}, tmp_path / "model.safetensors")

    require_plain(FolderCheckpoint(tmp_path))
