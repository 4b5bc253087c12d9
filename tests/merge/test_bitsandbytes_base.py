"""A merge into a bitsandbytes base equals PEFT's merge into the dequantized base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packager.merge.adapters import merge
from packager.merge.merge_options import MergeOptions
from packager.source.adapter_folder import open_adapter
from tests.merge.tiny import make_base
from tests.model.dequantize.quantized import opened, same
from tests.model.dequantize.test_bnb import SETTINGS, quantize


@pytest.mark.parametrize("name", ["nf4 double", "int8"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_merging_into_a_quantized_base_equals_merging_into_the_dequantized_one(
    use_dora: bool, name: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_base("biased", tmp_path / "base")
    model = quantize(base, tmp_path / "quantized", **SETTINGS[name])
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        LoraConfig(
            r=4, target_modules=["q_proj", "down_proj"], use_dora=use_dora, task_type="CAUSAL_LM"
        ),
    )
    for key, parameter in tuned.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(tmp_path / "lora")

    merged = merge(
        opened(tmp_path / "quantized"), [open_adapter(tmp_path / "lora")], MergeOptions(), tmp_path
    )
    tensors = {key: merged.load(key) for key in merged.tensors}
    merged.require_all_used()

    usual = PeftModel.from_pretrained(model.dequantize(dtype=torch.bfloat16), tmp_path / "lora")
    wanted = usual.merge_and_unload().state_dict()
    assert merged.facts.modules == 4
    assert set(tensors) == set(wanted)
    assert all(same(tensors[key], wanted[key]) for key in tensors)
    assert "quantization_config" not in merged.config.values
