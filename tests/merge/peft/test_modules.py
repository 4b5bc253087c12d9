"""A LoRA on stacked experts is merged a few experts at a time, and gives PEFT's own bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper

from packager.merge.peft import modules
from packager.merge.peft.modules import merge_stacks
from packager.model.checkpoint import FolderCheckpoint
from tests.merge.compared import differences, opened
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, merge_with_peft

HIDDEN, WIDTH, RANK = 96, 40, 3


@pytest.fixture(autouse=True)
def expert_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of experts in each of PEFT's updates, of which each is as small as it may be."""
    experts: list[int] = []
    computed = ParamWrapper.get_delta_weight

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        experts.append(self.num_experts)
        return computed(self, *args, **kwargs)

    monkeypatch.setattr(ParamWrapper, "get_delta_weight", counting)
    monkeypatch.setattr(modules, "PIECE_BYTES", 1)
    return experts


@pytest.fixture(params=[1, 16], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def experts_of(count: int, dtype: torch.dtype, is_transposed: bool) -> torch.nn.Module:
    module = torch.nn.Module()
    module.is_transposed = is_transposed
    for name, shape in (("gate_up_proj", (2 * WIDTH, HIDDEN)), ("down_proj", (HIDDEN, WIDTH))):
        values = torch.randn(count, *(shape[::-1] if is_transposed else shape)).to(dtype)
        module.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
    bias = torch.nn.Parameter(torch.randn(count, HIDDEN).to(dtype), requires_grad=False)
    module.register_parameter("down_proj_bias", bias)
    return module


def tuned(module: torch.nn.Module, dtype: torch.dtype) -> Any:
    """PEFT's layers on both stacks, one in the other, as it nests them; random adapters in them."""
    layer: Any = module
    for name, rank in (("gate_up_proj", 2 * RANK), ("down_proj", RANK)):
        config = LoraConfig(target_parameters=[name])
        layer = ParamWrapper(
            layer, "default", parameter_name=name, config=config, r=rank, lora_alpha=8
        )
        for factor in (layer.lora_A["default"], layer.lora_B["default"]):
            factor.weight.data = torch.randn(factor.weight.shape).to(dtype)
    return layer


@pytest.mark.parametrize("is_transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [2, 3, 4, 17])
def test_a_few_experts_at_a_time_give_what_peft_gives_for_all_at_once(
    count: int,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    is_transposed: bool,
    expert_counts: list[int],
) -> None:
    torch.manual_seed(count)
    layer = tuned(experts_of(count, dtype, is_transposed), adapter_dtype)
    before = copy.deepcopy(layer)
    real = {
        id(value): torch.nn.Parameter(value.data.clone(), requires_grad=False)
        for value in layer.parameters()
    }
    wanted = copy.deepcopy(layer).unload_and_optionally_merge_module(True, False, None)
    expert_counts.clear()

    merged = merge_stacks(layer, real)

    assert type(merged) is type(wanted)
    assert list(merged.state_dict()) == list(wanted.state_dict())
    for name, value in wanted.state_dict().items():
        assert torch.equal(merged.state_dict()[name], value), name
        is_changed = not torch.equal(value, before.get_base_layer().state_dict()[name])
        assert is_changed is not name.endswith("bias")
    for name, value in before.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), "the layer itself was altered"
    assert sum(expert_counts) == 2 * count
    assert set(expert_counts) <= {2, 3}


def test_experts_of_a_model_are_merged_a_few_at_a_time(
    tiny_base: Callable[..., Path], tmp_path: Path, expert_counts: list[int]
) -> None:
    base = tiny_base("moe")
    adapter = make_adapter(base, "moe", METHODS["lora-experts"], tmp_path / "adapter")
    wanted = FolderCheckpoint(merge_with_peft(base, "moe", adapter, tmp_path / "peft"))
    whole = max(expert_counts)
    expert_counts.clear()

    checkpoint = opened(base, adapter)

    assert differences(checkpoint, wanted) == []
    assert 1 < max(expert_counts) < whole
