"""Where PEFT silently merges another model than was trained: what ftpack does instead."""

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
from safetensors.torch import load_file, save_file

from packager.errors import AdapterMismatchError, InputRefusedError
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.save.safetensors import save_safetensors
from tests.merge.compared import opened
from tests.merge.methods import METHODS
from tests.merge.tiny import load_base, make_adapter, merge_with_peft, targets

IDS = torch.tensor([[3, 1, 4, 5, 9]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def test_frod_is_merged_with_the_projections_that_it_was_trained_with(
    tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT factors the base again, but the file's projections belong to other factors."""
    from peft.tuners.frod import model as frod

    base, here = tiny_base("tied", torch.float32), frod._projection_from_weights

    def elsewhere(*given: Any) -> torch.Tensor:
        """A factor's signs are free: another machine, or other libraries, choose other ones."""
        projection: torch.Tensor = here(*given)
        return projection * (1 - 2 * (torch.arange(projection.shape[1]) % 2))

    with monkeypatch.context() as trained:
        trained.setattr(frod, "_projection_from_weights", elsewhere)
        config = peft.FrodConfig(
            task_type="CAUSAL_LM", target_modules=targets("tied", "linear"), sparse_rate=0.05
        )
        torch.manual_seed(1)
        tuned: Any = peft.get_peft_model(load_base(base, "tied"), config)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    wanted = logits_of(tuned)
    tuned.save_pretrained(tmp_path / "adapter")

    checkpoint = opened(base, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    save_safetensors(checkpoint, tmp_path / "merged", Silent())

    (tmp_path / "merged" / "config.json").write_bytes((base / "config.json").read_bytes())
    merged = logits_of(load_base(tmp_path / "merged", "tied"))
    torch.testing.assert_close(merged, wanted, rtol=1e-3, atol=1e-3)
    usual = merge_with_peft(base, "tied", tmp_path / "adapter", tmp_path / "peft")
    assert not torch.allclose(logits_of(load_base(usual, "tied")), wanted, rtol=0.1, atol=0.1)


def other_sizes(tensors: dict[str, torch.Tensor], stem: str) -> None:
    first, second = (f"{stem}.adamss_B.{part}" for part in (0, 1))
    joined = torch.cat([tensors[first], tensors[second]])
    rows = len(tensors[first]) - 1
    tensors |= {first: joined[:rows].clone(), second: joined[rows:].clone()}


def other_vectors(tensors: dict[str, torch.Tensor], stem: str) -> None:
    vectors = tensors[f"{stem}.adamss_newB"]
    random = torch.randn(vectors.shape[1], len(vectors), generator=torch.Generator().manual_seed(2))
    tensors[f"{stem}.adamss_newB"] = torch.linalg.qr(random).Q.T.contiguous()


@pytest.mark.parametrize(
    ("edit", "words"),
    [(other_sizes, r"adamss_B\.default\.0"), (other_vectors, r"adamss_newB\.default")],
)
def test_adamss_with_clusters_that_differ_from_training_is_an_error(
    edit: Callable[[dict[str, torch.Tensor], str], None],
    words: str,
    tiny_base: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """PEFT takes the file's clusters, and adds the rows of one cluster to those of another."""
    pytest.importorskip("sklearn", reason="AdaMSS clusters with scikit-learn")
    base = tiny_base("tied", torch.float32)
    adapter = make_adapter(base, "tied", METHODS["adamss"], tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors, "base_model.model.model.layers.0.self_attn.q_proj")
    save_file(tensors, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_with_peft(base, "tied", adapter, tmp_path / "peft")

    checkpoint = opened(base, adapter)

    with pytest.raises(AdapterMismatchError, match=words + r" for .* on this machine"):
        checkpoint.load("model.layers.0.self_attn.q_proj.weight")


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def renamed(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def without_one(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[f"{Q_PROJ}.lora_B.weight"]


def with_two_for_one(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{Q_PROJ}.lora_B.default.weight"] = torch.zeros_like(
        tensors[f"{Q_PROJ}.lora_B.weight"]
    )


def with_nan(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{Q_PROJ}.lora_B.weight"].fill_(float("nan"))


def without_a_bias(tensors: Tensors, config: dict[str, Any]) -> None:
    config["bias"] = "lora_only"


def with_a_setting(tensors: Tensors, config: dict[str, Any]) -> None:
    config["use_hyperspace"] = True


def with_a_target(tensors: Tensors, config: dict[str, Any]) -> None:
    config["target_modules"] = [*config["target_modules"], "qq_proj"]


LOST: dict[str, tuple[Callable[[Tensors, dict[str, Any]], None], str]] = {
    "names": (renamed, "belong to no t"),
    "a missing tensor": (without_one, "no tensors for 1"),
    "two names for one place": (with_two_for_one, "lora_B.default"),
    "NaN": (with_nan, "NaN"),
    "biases": (without_a_bias, "no tensors for"),
    "a setting": (with_a_setting, "use_hyperspace"),
    "a target": (with_a_target, "qq_proj"),
}


@pytest.mark.parametrize("case", LOST)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_drops_silently_or_with_a_warning_is_an_error(
    case: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    edit, words = LOST[case]
    base = tiny_base("biased")
    adapter = make_adapter(base, "biased", METHODS["lora"], tmp_path / "adapter")
    path, settings = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors, config = load_file(path), json.loads(settings.read_text())
    edit(tensors, config)
    save_file(tensors, path)
    settings.write_text(json.dumps(config))
    usual = FolderCheckpoint(merge_with_peft(base, "biased", adapter, tmp_path / "peft"))
    assert set(usual.tensors) == set(FolderCheckpoint(base).tensors)

    with pytest.raises(InputRefusedError, match=re.escape(words)) as caught:
        opened(base, adapter).load("model.layers.0.self_attn.q_proj.weight")

    assert caught.value.next_step


def test_osf_on_conv1d_is_an_error(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT leaves every module as it is, and merges nothing."""
    base = tiny_base("conv1d")
    adapter = make_adapter(base, "conv1d", METHODS["osf"], tmp_path / "adapter")
    usual = FolderCheckpoint(merge_with_peft(base, "conv1d", adapter, tmp_path / "peft"))
    before = FolderCheckpoint(base)
    assert all(torch.equal(usual.load(name), before.load(name)) for name in before.tensors)

    with pytest.raises(AdapterMismatchError, match="tunes no module"):
        opened(base, adapter)
