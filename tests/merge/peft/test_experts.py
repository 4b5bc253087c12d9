"""LoRAs on stacked experts, in every layout that PEFT and Unsloth saved them in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import BaseMismatchError, UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from tests.merge.compared import differences, opened
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, merge_with_peft

EXPERTS = 4
UNSLOTHS = {
    "auto_mapping": {
        "base_model_class": "Qwen3MoeForCausalLM",
        "parent_library": "transformers.models.qwen3_moe.modeling_qwen3_moe",
        "unsloth_fixed": True,
    }
}
MARKED = {
    "lora_B_layout": "grouped_by_expert",
    "unsloth_fused_expert_lora": {
        "lora_A_layout": "grouped_by_expert",
        "lora_B_layout": "grouped_by_expert",
        "parameters": {
            name: {"lora_B_layout": "grouped_by_expert", "num_experts": EXPERTS}
            for name in ("gate_up_proj", "down_proj")
        },
    },
}
Edit = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def saved_otherwise(adapter: Path, folder: Path, edit: Edit, **settings: Any) -> Path:
    """A copy of an adapter with the matrices of its stacks edited, and settings added."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for a_name in [name for name in tensors if ".experts." in name and ".lora_A." in name]:
        b_name = a_name.replace(".lora_A.", ".lora_B.")
        a, b = edit(tensors[a_name], tensors[b_name])
        tensors |= {a_name: a.contiguous(), b_name: b.contiguous()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def grouped(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As Unsloth trained it before 2026.9.6: column `e * r + k` is of expert `e`."""
    rank = b.shape[1] // EXPERTS
    columns = [k * EXPERTS + e for e in range(EXPERTS) for k in range(rank)]
    return a, b[:, columns]


def changed_about(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As PEFT 0.18 saves it: each expert's product is transposed, with its factors swapped."""
    rank = b.shape[1] // EXPERTS
    new_a, new_b = torch.empty(a.shape[0], b.shape[0]), torch.empty(a.shape[1], b.shape[1])
    for expert in range(EXPERTS):
        for k in range(rank):
            new_a[expert * rank + k] = b[:, k * EXPERTS + expert]
            new_b[:, k * EXPERTS + expert] = a[expert * rank + k]
    return new_a, new_b


def both(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return grouped(*changed_about(a, b))


def as_is(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a, b


# How the stacks' matrices are edited, what adapter_config.json says, and whether that is certain.
LAYOUTS: dict[str, tuple[Edit, dict[str, Any], bool]] = {
    "PEFT 0.18": (changed_about, {"peft_version": "0.18.1"}, True),
    "PEFT 0.17": (changed_about, {"peft_version": None}, True),
    "Unsloth, marked": (grouped, {**UNSLOTHS, **MARKED}, True),
    "Unsloth, marked by one key": (grouped, {"lora_B_layout": "grouped_by_expert"}, True),
    "Unsloth, marked as PEFT's": (as_is, {**UNSLOTHS, "lora_B_layout": "rank_major"}, True),
    "Unsloth, marked where PEFT keeps it": (
        grouped,
        {"auto_mapping": UNSLOTHS["auto_mapping"] | MARKED},
        True,
    ),
    "Unsloth, not marked": (grouped, UNSLOTHS, False),
    "Unsloth on PEFT 0.18": (both, {**UNSLOTHS, "peft_version": "0.18.0"}, False),
}


@pytest.fixture
def stacked(tiny_base: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A base, and a LoRA on its stacked experts as PEFT saves it now."""
    base = tiny_base("moe")
    return base, make_adapter(base, "moe", METHODS["lora-experts"], tmp_path / "adapter")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_on_stacked_experts_is_the_same_in_every_layout(
    layout: str, stacked: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = stacked
    edit, settings, is_sure = LAYOUTS[layout]
    other = saved_otherwise(adapter, tmp_path / "other", edit, **settings)
    wanted = FolderCheckpoint(merge_with_peft(base, "moe", adapter, tmp_path / "peft"))

    checkpoint = opened(base, other)

    assert differences(checkpoint, wanted) == []
    assert [("Unsloth" in line) for line in checkpoint.facts.warnings] == (
        [] if is_sure else [True]
    )
    checkpoint.require_all_used()


@pytest.mark.parametrize("layout", ["PEFT 0.18", "Unsloth, marked"])
def test_peft_itself_fails_on_its_old_layout_and_scrambles_unsloths(
    layout: str, stacked: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = stacked
    edit, settings, _ = LAYOUTS[layout]
    other = saved_otherwise(adapter, tmp_path / "other", edit, **settings)
    if layout == "PEFT 0.18":
        with pytest.raises(RuntimeError, match="size mismatch"):
            merge_with_peft(base, "moe", other, tmp_path / "peft")
        return
    usual = FolderCheckpoint(merge_with_peft(base, "moe", other, tmp_path / "peft"))

    assert differences(opened(base, other), usual) != []


def test_experts_that_unsloth_targets_twice_are_merged_once(
    stacked: tuple[Path, Path], tmp_path: Path
) -> None:
    """PEFT takes `gate_proj` for an adapter of transformers 4, and doubles the stack's rank."""
    base, adapter = stacked
    names = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    other = saved_otherwise(adapter, tmp_path / "other", as_is, target_modules=names)
    wanted = FolderCheckpoint(merge_with_peft(base, "moe", adapter, tmp_path / "peft"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        merge_with_peft(base, "moe", other, tmp_path / "twice")

    checkpoint = opened(base, other)

    assert differences(checkpoint, wanted) == []
    checkpoint.require_all_used()


def test_a_missing_target_outside_of_experts_is_still_an_error(
    stacked: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = stacked
    other = saved_otherwise(
        adapter, tmp_path / "other", as_is, target_modules=["q_proj", "o_proj", "qq_proj"]
    )

    with pytest.raises(BaseMismatchError, match="qq_proj"):
        opened(base, other)


@pytest.mark.parametrize(
    ("version", "is_certain"), [("0.18.1", False), (None, False), ("0.19.1", True)]
)
def test_a_square_stack_is_refused_if_its_version_leaves_the_layout_ambiguous(
    version: str | None, is_certain: bool, tmp_path: Path
) -> None:
    import transformers
    from transformers import AutoModelForCausalLM

    shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    config = transformers.Qwen3MoeConfig(
        **shape, num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=32
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")  # gate_up_proj is 2 * 32 by 64
    method = replace(METHODS["lora-experts"], options={
        "r": 2, "target_parameters": ["mlp.experts.gate_up_proj"]})  # fmt: skip
    adapter = make_adapter(tmp_path / "base", "moe", method, tmp_path / "adapter")
    other = saved_otherwise(adapter, tmp_path / "other", as_is, peft_version=version)

    if not is_certain:
        with pytest.raises(UnsupportedError, match=r"gate_up_proj is square \(64\)"):
            opened(tmp_path / "base", other)
        older = saved_otherwise(adapter, tmp_path / "older", changed_about, peft_version=version)
        now, then = (
            FolderCheckpoint(merge_with_peft(tmp_path / "base", "moe", item, out))
            for item, out in ((adapter, tmp_path / "now"), (older, tmp_path / "then"))
        )
        name = "model.layers.0.mlp.experts.0.up_proj.weight"
        assert not torch.equal(now.load(name), then.load(name))
        return
    wanted = merge_with_peft(tmp_path / "base", "moe", adapter, tmp_path / "peft")
    assert differences(opened(tmp_path / "base", other), FolderCheckpoint(wanted)) == []


@pytest.mark.parametrize("value", ["mixed", "column_major"])
def test_an_unknown_layout_is_refused(
    value: str, stacked: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = stacked
    parameters = {"gate_up_proj": {"lora_B_layout": value}}
    other = saved_otherwise(
        adapter, tmp_path / "other", as_is, unsloth_fused_expert_lora={"parameters": parameters}
    )

    with pytest.raises(UnsupportedError, match=re.escape(repr(value))):
        opened(base, other)


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """Stacks that are stored transposed, and a `down_proj` that is square, as in the real model."""
    import transformers

    config = transformers.GptOssConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=EXPERTS,
        num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("version", [None, "0.18.0", "0.19.0", "0.21.2"])
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["down_proj"]], ids=len)
def test_gpt_oss_square_stacks_have_the_same_layout_in_every_peft_but_one(
    names: list[str], version: str | None, gpt_oss: Path, tmp_path: Path
) -> None:
    parameters = [f"mlp.experts.{name}" for name in names]
    method = replace(METHODS["lora-experts"], options={"r": 2, "target_parameters": parameters})
    adapter = make_adapter(gpt_oss, "moe", method, tmp_path / "adapter")
    edit = changed_about if version == "0.19.0" else as_is
    other = saved_otherwise(adapter, tmp_path / "other", edit, peft_version=version)
    if version == "0.19.0" and len(names) == 1:
        with pytest.raises(UnsupportedError, match=r"down_proj is square \(64\)"):
            opened(gpt_oss, other)
        return
    wanted = FolderCheckpoint(merge_with_peft(gpt_oss, "moe", adapter, tmp_path / "peft"))

    checkpoint = opened(gpt_oss, other)

    assert differences(checkpoint, wanted) == []
    checkpoint.require_all_used()
