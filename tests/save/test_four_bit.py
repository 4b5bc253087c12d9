"""4-bit weights equal those of transformers and bitsandbytes: names, element types and bytes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from packager.errors import OutputExistsError, ToolchainError
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.save.four_bit import plan_four_bit, save_four_bit
from packager.verbs.merge import merge
from tests.merge.methods import METHODS
from tests.merge.tiny import Kind, make_adapter, merge_with_peft
from tests.requests import request_for

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def quantized_by_transformers(folder: Path, kind: Kind, out: Path) -> Path:
    import transformers

    auto = transformers.AutoModelForCausalLM
    auto = transformers.LlavaForConditionalGeneration if kind == "vlm" else auto
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    auto.from_pretrained(
        folder, dtype="auto", quantization_config=config, device_map="cpu"
    ).save_pretrained(out)
    return out


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["tied", "biased", "scaled", "conv1d", "vlm"])
def test_merged_4bit_equals_the_merged_model_as_transformers_quantizes_it(
    kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base(kind)
    lora = make_adapter(base, kind, METHODS["lora"], tmp_path / "lora")
    merged = merge_with_peft(base, kind, lora, tmp_path / "peft")
    usual = quantized_by_transformers(merged, kind, tmp_path / "usual")

    merge(request_for(lora), tmp_path / "saved", form="merged_4bit")

    saved, wanted = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", usual)
    )
    assert saved.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (saved[name].dtype, saved[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(saved[name].view(torch.uint8), tensor.view(torch.uint8)), name
    configs = [
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (tmp_path / "saved", usual)
    ]
    assert configs[0] == configs[1]


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["tied", "conv1d", "moe"])
def test_transformers_loads_merged_4bit_on_the_cpu_and_generates(
    kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    import bitsandbytes
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = tiny_base(kind)
    lora = make_adapter(base, kind, METHODS["lora"], tmp_path / "lora")
    merged = merge_with_peft(base, kind, lora, tmp_path / "peft")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    usual = AutoModelForCausalLM.from_pretrained(
        merged, dtype="auto", quantization_config=config, device_map="cpu"
    )

    merge(request_for(lora), tmp_path / "saved", form="merged_4bit")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map="cpu")
    ids = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, usual(ids).logits)
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 7)
    assert any(isinstance(item, bitsandbytes.nn.Linear4bit) for item in model.modules())
    assert not isinstance(model.get_output_embeddings(), bitsandbytes.nn.Linear4bit)


@needs_bitsandbytes
def test_weights_that_are_no_longer_tied_are_quantized_as_by_transformers(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    lora = make_adapter(tiny_base("tied"), "tied", METHODS["lora-head"], tmp_path / "lora")
    merge(request_for(lora), tmp_path / "merged")
    usual = quantized_by_transformers(tmp_path / "merged", "tied", tmp_path / "usual")

    merge(request_for(lora), tmp_path / "saved", form="merged_4bit")

    saved, wanted = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", usual)
    )
    assert saved.keys() == wanted.keys()
    assert saved["lm_head.weight"].dtype == torch.bfloat16
    assert all(torch.equal(saved[name], wanted[name]) for name in wanted)


@needs_bitsandbytes
def test_shards_hold_the_same_tensors_and_have_an_index(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("biased")
    checkpoint = FolderCheckpoint(base)
    plan = plan_four_bit(checkpoint)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()

    save_four_bit(checkpoint, plan, whole, Silent())
    files = save_four_bit(checkpoint, plan, parts, Silent(), shard_bytes=40_000)

    index = json.loads((parts / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = load_file(whole / "model.safetensors")
    assert len(files) > 3
    assert index.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(load_file(parts / index[name])[name], tensor)
    assert (whole / "model.safetensors").stat().st_size < plan.size_bytes + 16_384


def test_without_bitsandbytes_the_command_that_installs_it_is_named(
    tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = make_adapter(tiny_base("biased"), "biased", METHODS["lora"], tmp_path / "lora")

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )

    with pytest.raises(ToolchainError, match="bitsandbytes") as caught:
        merge(request_for(lora), tmp_path / "saved", form="merged_4bit")

    assert "pip install" in caught.value.next_step
    assert not (tmp_path / "saved").exists()


@needs_bitsandbytes
def test_a_model_is_not_overwritten_by_its_4bit_form(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("biased")
    lora = make_adapter(base, "biased", METHODS["lora"], tmp_path / "lora")

    with pytest.raises(OutputExistsError):
        merge(request_for(lora, force=True), base, form="merged_4bit")
