"""A quantized base is packaged as its dequantized weights, and that is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.model.checkpoint import FolderCheckpoint
from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.verbs.build import build
from packager.verbs.merge import merge
from tests.reports import Reports

FORMAT = {"quant_method": "fp8", "weight_block_size": [64, 64], "activation_scheme": "dynamic"}


def quantize(base: Path, folder: Path, plain: Path) -> None:
    """A base in FP8, and the plain model that transformers makes of it."""
    from safetensors.torch import save_file
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    checkpoint = FolderCheckpoint(base)
    packed, dequantized = {}, {}
    for name, info in checkpoint.tensors.items():
        weight = checkpoint.load(name)
        packed[name] = dequantized[name] = weight
        if name.endswith("_proj.weight"):
            rows, columns = (size // 64 for size in info.shape)
            blocks = weight.float().reshape(rows, 64, columns, 64)
            scale = blocks.abs().amax((1, 3)) / 448
            blocks = blocks / scale[:, None, :, None]
            packed[name] = blocks.reshape(info.shape).to(torch.float8_e4m3fn)
            packed[f"{name}_scale_inv"] = scale
            dequantized[name] = Fp8Dequantize(None)._dequantize_one(
                packed[name], scale, torch.bfloat16
            )
    config = json.loads((base / "config.json").read_text())
    for target, tensors, settings in (
        (folder, packed, {"quantization_config": FORMAT}),
        (plain, dequantized, {}),
    ):
        target.mkdir()
        for name, path in checkpoint.files.items():
            (target / name).write_bytes(path.read_bytes())
        (target / "config.json").write_text(json.dumps(config | settings))
        save_file(tensors, target / "model.safetensors", {"format": "pt"})


@pytest.fixture
def folders(small_model: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A quantized base, and its plain model."""
    quantize(small_model("llama"), tmp_path / "fp8", tmp_path / "plain")
    return tmp_path / "fp8", tmp_path / "plain"


def test_an_adapter_is_merged_into_the_dequantized_base(
    folders: tuple[Path, Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, plain = folders
    progress = Reports()

    merge(Request(str(adapter("llama")), base=str(base)), tmp_path / "merged", progress)

    said = "The base is quantized (fp8 in blocks of 64 x 64): dequantized to bf16 tensor by tensor"
    assert said in progress.notes
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    usual = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(plain, dtype="auto"), adapter("llama")
    ).merge_and_unload()
    assert all(torch.equal(merged[name], tensor) for name, tensor in usual.state_dict().items())
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_the_converter_sees_the_plain_model(
    folders: tuple[Path, Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    packages = [
        prepare(Request(source, base=base, name="m", out=tmp_path / "out"))
        for folder in folders
        for source, base in ((str(folder), None), (str(adapter("llama")), str(folder)))
    ]

    quantized, plain = packages[:2], packages[2:]
    for found, wanted in zip(quantized, plain, strict=True):
        assert [(t.name, t.elements) for t in found.conversion.tensors] == [
            (t.name, t.elements) for t in wanted.conversion.tensors
        ]
        assert found.quants == wanted.quants
        assert dict(found.conversion.key_values) == dict(wanted.conversion.key_values)


def test_the_gguf_is_that_of_the_plain_model(
    folders: tuple[Path, Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    made = []
    for index, base in enumerate(folders):
        request = Request(
            str(adapter("llama")),
            base=str(base),
            quants=("Q8_0",),
            name="m",
            out=tmp_path / str(index),
        )
        (file,) = build(prepare(request)).manifest.ggufs
        made.append(file.sha256)

    assert made[0] == made[1]
