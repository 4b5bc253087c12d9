"""LoRAs whose training began with PEFT's special initialisations; each of them really runs."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig, LoftQConfig, LoraGAConfig
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from packager.errors import InputRefusedError
from packager.model.checkpoint import FolderCheckpoint
from packager.source.adapter_folder import open_adapter
from tests.merge.compared import differences, opened
from tests.merge.tiny import VOCABULARY, load_base, merge_with_peft

TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[3, 1, 4, 5, 9]])


@pytest.fixture
def base(tiny_base: Callable[..., Path]) -> Path:
    """In fp32, so that rounding in a merge does not show in the logits."""
    return tiny_base("tied", torch.float32)


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=TARGETS, **options
    )


def data(count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Batches of one: CorDA takes only those."""
    random = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(0, VOCABULARY, (1, 12), generator=random)} for _ in range(count)
    ]


def train(model: Any) -> torch.Tensor:
    """Change what is trainable, in place of training; gives the tuned model's logits."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load_base(folder, "tied")(IDS).logits
    return logits


def from_corda(base: Path) -> Any:
    pytest.importorskip("attr", reason="PEFT's CorDA is written with attrs")
    from peft.tuners.lora.corda import preprocess_corda

    model, config = load_base(base, "tied"), lora(init_lora_weights="corda")
    config.corda_config = CordaConfig()

    def run() -> None:
        with torch.no_grad():
            for batch in data():
                model(**batch)

    preprocess_corda(model, config, run_model=run)
    return peft.get_peft_model(model, config)


def from_lora_ga(base: Path) -> Any:
    from peft.tuners.lora.loraga import preprocess_loraga

    model = load_base(base, "tied")
    config = lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

    def step() -> None:
        for batch in data():
            model(**batch, labels=batch["input_ids"]).loss.backward()

    preprocess_loraga(model, config, step)
    return peft.get_peft_model(model, config)


def from_base_alone(init: str) -> Callable[[Path], Any]:
    return lambda base: peft.get_peft_model(load_base(base, "tied"), lora(init_lora_weights=init))


MUTATING: dict[str, Callable[[Path], Any]] = {
    "pissa": from_base_alone("pissa"),
    "pissa_niter_4": from_base_alone("pissa_niter_4"),
    "olora": from_base_alone("olora"),
    "corda": from_corda,
    "lora_ga": from_lora_ga,
}


@pytest.mark.parametrize("init", MUTATING)
def test_an_adapter_that_was_converted_on_saving_is_a_plain_lora(
    init: str, base: Path, tmp_path: Path
) -> None:
    tuned = MUTATING[init](base)
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(tmp_path / "start")
    tuned.peft_config["default"].init_lora_weights = init
    wanted = train(tuned)
    tuned.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )

    checkpoint = opened(base, tmp_path / "adapter")

    usual = merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "peft")
    assert differences(checkpoint, FolderCheckpoint(usual)) == []
    torch.testing.assert_close(logits_of(usual), wanted, rtol=1e-4, atol=1e-4)
    checkpoint.require_all_used()
    assert checkpoint.facts.warnings == ()


@pytest.mark.parametrize("init", ["corda", "lora_ga", "pissa_niter_4"])
def test_an_initialisation_that_no_file_holds_is_refused_with_a_next_step(
    init: str, base: Path, tmp_path: Path
) -> None:
    """As saved, PEFT fails on CorDA, and turns the others into a model that was not trained."""
    tuned = MUTATING[init](base)
    wanted = train(tuned)
    tuned.save_pretrained(tmp_path / "adapter")

    with pytest.raises(InputRefusedError, match=re.escape(repr(init))) as caught:
        open_adapter(tmp_path / "adapter")

    assert "path_initial_model_for_weight_conversion" in str(caught.value.next_step)
    if init == "corda":
        with pytest.raises(ValueError, match="eigens"):
            merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "peft")
        return
    usual = logits_of(merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "peft"))
    assert not torch.allclose(usual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rho", [1.0, 2.0], ids=["equal ranks", "ranks by variance"])
def test_eva_is_saved_as_a_plain_lora(rho: float, base: Path, tmp_path: Path) -> None:
    model = load_base(base, "tied")
    config = lora(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=rho))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned: Any = peft.get_peft_model(model, config)
        peft.initialize_lora_eva_weights(tuned, data(20), show_progress_bar=False)
    wanted = train(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] == "eva"
    assert bool(saved["rank_pattern"]) == (rho > 1)

    checkpoint = opened(base, tmp_path / "adapter")

    usual = merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "peft")
    assert differences(checkpoint, FolderCheckpoint(usual)) == []
    torch.testing.assert_close(logits_of(usual), wanted, rtol=1e-4, atol=1e-4)
    checkpoint.require_all_used()


class _WithoutGpu(TorchFunctionMode):
    """PEFT computes LoftQ only on a GPU, although nothing in its code needs one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args = tuple("cpu" if str(value).startswith("cuda") else value for value in args)
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def test_loftq_is_refused_as_saved_but_is_a_plain_lora_on_its_quantized_base(
    base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="LoftQ quantizes with bitsandbytes")
    pytest.importorskip("scipy", reason="PEFT asks for it, for LoftQ")
    config = lora(init_lora_weights="loftq", loftq_config=LoftQConfig(loftq_bits=4))
    with _WithoutGpu():
        tuned: Any = peft.get_peft_model(load_base(base, "tied"), config)
    wanted = train(tuned)
    tuned.save_pretrained(tmp_path / "adapter")

    with pytest.raises(InputRefusedError, match="loftq") as caught:
        open_adapter(tmp_path / "adapter")

    assert "--base" in str(caught.value.next_step)
    assert "on a GPU" in str(caught.value.next_step)
    with _WithoutGpu():
        again = merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "again")
    torch.testing.assert_close(logits_of(again), wanted, rtol=1e-4, atol=1e-4)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": True}))
    tuned.unload().save_pretrained(tmp_path / "quantized")
    name = "model.layers.0.self_attn.q_proj.weight"
    quantized = FolderCheckpoint(tmp_path / "quantized").load(name)
    assert len(quantized.unique()) < len(FolderCheckpoint(base).load(name).unique())
    checkpoint = opened(tmp_path / "quantized", tmp_path / "adapter")
    usual = merge_with_peft(tmp_path / "quantized", "tied", path.parent, tmp_path / "peft")
    assert differences(checkpoint, FolderCheckpoint(usual)) == []
    torch.testing.assert_close(logits_of(usual), wanted, rtol=1e-4, atol=1e-4)


def test_adalora_with_pruned_ranks_is_merged_as_peft_merges_it(base: Path, tmp_path: Path) -> None:
    steps = 8
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=steps,
        target_modules=TARGETS,
    )  # fmt: skip
    torch.manual_seed(1)
    tuned: Any = peft.get_peft_model(load_base(base, "tied"), config)
    train(tuned)
    tuned.train()
    optimizer = torch.optim.SGD((p for p in tuned.parameters() if p.requires_grad), lr=1.0)
    batch = data(1)[0]
    for step in range(1, steps + 1):
        tuned(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        tuned.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    with torch.no_grad():
        wanted = tuned.eval()(IDS).logits
    tuned.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    ranks = {len(value) for name, value in saved.items() if "lora_E" in name}
    assert len(ranks) > 1
    assert sum(len(v) for n, v in saved.items() if "lora_E" in n) < 6 * 6

    checkpoint = opened(base, tmp_path / "adapter")

    usual = merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "peft")
    assert differences(checkpoint, FolderCheckpoint(usual)) == []
    torch.testing.assert_close(logits_of(usual), wanted, rtol=1e-3, atol=1e-3)
    checkpoint.require_all_used()
