"""A quantized base is packaged as its dequantized weights, and a note says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.model.checkpoint import FolderCheckpoint
from packager.package.prepare import prepare
from packager.verbs.build import build
from packager.verbs.merge import merge
from tests.reports import Reports
from tests.requests import request_for

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
        for name, file in checkpoint.files.items():
            (target / name).write_bytes(file.path.read_bytes())
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

    merge(request_for(adapter("llama"), base=base), tmp_path / "merged", progress)

    facts = ("base", "fp8 in blocks of 64 x 64", "bf16")
    assert any(all(fact in note for fact in facts) for note in progress.notes)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    usual = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(plain, dtype="auto"), adapter("llama")
    ).merge_and_unload()
    assert all(torch.equal(merged[name], tensor) for name, tensor in usual.state_dict().items())
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_the_converter_gets_the_tensors_of_the_plain_model(
    folders: tuple[Path, Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    packages = [
        prepare(request_for(source, name="m", out=tmp_path / "out", base=base), tmp_path)
        for folder in folders
        for source, base in ((folder, None), (adapter("llama"), folder))
    ]

    for ours, expected in zip(packages[:2], packages[2:], strict=True):
        assert [(t.name, t.elements) for t in ours.text.tensors] == [
            (t.name, t.elements) for t in expected.text.tensors
        ]
        assert [file.typed for file in ours.ggufs] == [file.typed for file in expected.ggufs]
        assert dict(ours.text.key_values) == dict(expected.text.key_values)


def test_the_gguf_has_the_bytes_of_the_plain_models(
    folders: tuple[Path, Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    digests = []
    for index, base in enumerate(folders):
        request = request_for(adapter("llama"), ("Q8_0",), "m", tmp_path / str(index), base)
        (file,) = build(prepare(request, tmp_path)).bundle.manifest.ggufs
        digests.append(file.sha256)

    assert digests[0] == digests[1]
