"""Weights that bitsandbytes packed are read as `model.dequantize()` computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from packager.errors import CorruptFileError, UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from tests.merge.tiny import Kind, make_base
from tests.model.dequantize.quantized import dequantized, opened, same

SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "nf4 in bf16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def quantize(base: Path, folder: Path, **settings: Any) -> Any:
    """Save a base as bitsandbytes packs it; gives the model."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**settings),
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["biased", "conv1d"])
@pytest.mark.parametrize("name", SETTINGS)
def test_weights_are_those_of_the_library(name: str, kind: Kind, tmp_path: Path) -> None:
    base = make_base(kind, tmp_path / "base")
    model = quantize(base, tmp_path / "quantized", **SETTINGS[name])

    checkpoint = opened(tmp_path / "quantized")

    plain = FolderCheckpoint(base)
    assert dict(checkpoint.tensors) == dict(plain.tensors)
    wanted = model.dequantize(dtype=torch.bfloat16).state_dict()
    packed = [key for key in checkpoint.tensors if checkpoint.is_packed(key)]
    assert len(packed) == (8 if kind == "conv1d" else 14)
    for key in checkpoint.tensors:
        expected = wanted[key] if key in wanted else wanted[f"transformer.{key}"]
        if kind == "conv1d" and key in packed:
            expected = expected.T  # a linear layer there, transformers' Conv1D in a plain model
        assert same(checkpoint.load(key), expected), key


def test_int8_without_scales_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 8, dtype=torch.int8)}

    with pytest.raises(CorruptFileError, match=r"up_proj\.weight.*SCB"):
        dequantized(tmp_path / "m", tensors, {"load_in_8bit": True})


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tensors = {"a.weight": torch.ones(4, 8, dtype=torch.int8), "a.SCB": torch.ones(4)}

    with pytest.raises(UnsupportedError, match="bitsandbytes") as error:
        dequantized(tmp_path / "m", tensors, {"load_in_8bit": True})

    assert "pip install 'ftpack[bitsandbytes]'" in error.value.next_step
