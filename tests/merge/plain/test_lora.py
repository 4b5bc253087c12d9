"""Merged tensors are PEFT's, byte for byte; what PEFT would ignore is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import AdapterMismatchError, BaseMismatchError, NonFiniteError
from packager.merge.plain.lora import LoraMerged
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.save.safetensors import save_safetensors
from packager.source.adapter_folder import open_adapter
from testing.usual_route import merge_with_peft


def merged(base: Path, adapter: Path, device: str = "cpu") -> LoraMerged:
    return LoraMerged(FolderCheckpoint(base), open_adapter(adapter), device)


def edited(adapter: Path, folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("llama", {"dtype": torch.bfloat16}),
        ("llama", {"rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 32}}),
        ("llama", {"alpha_pattern": {"v_proj": 3}}),
        ("llama", {"targets": ["q_proj", "down_proj"]}),
        ("llama", {"targets": r".*\.layers\.1\..*_proj"}),
        ("qwen3", {}),
        ("gemma3", {}),
        ("phi3", {}),
        # Conv1D stores its weight transposed: `fan_in_fan_out`.
        ("gpt2", {}),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "-".join(value) or "plain",
)
def test_the_saved_merge_is_what_merge_and_unload_saves(
    kind: str,
    options: dict[str, object],
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base, lora = small_model(kind), adapter(kind, **options)
    expected = FolderCheckpoint(merge_with_peft(base, lora, tmp_path / "peft"))

    checkpoint = merged(base, lora)
    (tmp_path / "ours").mkdir()
    save_safetensors(checkpoint, tmp_path / "ours", Silent())
    checkpoint.require_all_used()

    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(saved) == set(expected.tensors)
    for name, tensor in saved.items():
        want = expected.load(name)
        assert tensor.dtype == want.dtype
        assert torch.equal(tensor.view(torch.uint8), want.view(torch.uint8)), name
    changed = [
        name
        for name in saved
        if name in checkpoint.facts.merged_names
        and torch.equal(saved[name], checkpoint.base.load(name))
    ]
    assert not changed, "a targeted module with a nonzero B must change"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merge_on_a_gpu_is_what_merge_and_unload_gives_there(
    kind: str, small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, lora = small_model(kind), adapter(kind)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").to("cuda")
    expected = PeftModel.from_pretrained(model, lora).merge_and_unload().state_dict()

    checkpoint = merged(base, lora, "cuda")

    for name in checkpoint.tensors:
        want = expected[name].cpu()
        assert torch.equal(checkpoint.load(name).view(torch.uint8), want.view(torch.uint8)), name


def test_a_base_of_other_shapes_is_refused_with_the_shapes(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    with pytest.raises(BaseMismatchError, match=r"q_proj.*\[16, 256\] found, \[16, 192\] fits"):
        merged(small_model("llama", hidden_size=192), adapter("llama"))


def test_a_base_without_the_targeted_modules_is_refused(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    with pytest.raises(BaseMismatchError, match="q_proj"):
        merged(small_model("gpt2"), adapter("llama"))


def test_a_base_with_fewer_layers_is_refused_with_the_tensors_it_cannot_use(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    with pytest.raises(AdapterMismatchError, match=r"layers\.1\."):
        merged(small_model("llama", layers=1), adapter("llama", targets=["q_proj"]))


@pytest.mark.parametrize(
    ("rename", "cause"),
    [
        (lambda n: n.replace("model.layers", "_orig_mod.model.layers"), "compiled model"),
        (lambda n: n.replace(".weight", ".default.weight"), "adapter's name"),
    ],
)
def test_names_that_peft_would_silently_ignore_are_an_error(
    rename: Callable[[str], str],
    cause: str,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[rename(name)] = tensors.pop(name)

    folder = edited(adapter("llama"), tmp_path / "lora", edit)

    with pytest.raises(AdapterMismatchError, match=cause):
        merged(small_model("llama"), folder)


def test_a_module_without_its_matrices_is_an_error(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    folder = edited(adapter("llama"), tmp_path / "lora", lambda tensors: tensors.pop(name))

    with pytest.raises(AdapterMismatchError, match=r"layers\.0\.mlp\.up_proj\.lora_B"):
        merged(small_model("llama"), folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_inf_in_the_adapter_is_an_error_that_names_the_tensor(
    value: float, small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    folder = edited(
        adapter("llama"), tmp_path / "lora", lambda tensors: tensors[name][0].fill_(value)
    )

    with pytest.raises(NonFiniteError, match=r"q_proj\.lora_A"):
        merged(small_model("llama"), folder).load("model.layers.0.self_attn.q_proj.weight")


def test_what_was_never_loaded_is_listed_at_the_end(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    checkpoint = merged(small_model("llama"), adapter("llama"))
    checkpoint.load("model.layers.0.self_attn.q_proj.weight")

    with pytest.raises(AdapterMismatchError, match=r"26 adapter tensors .*not used"):
        checkpoint.require_all_used()


def test_an_adapter_whose_change_vanishes_in_rounding_is_an_error(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            value.mul_(1e-20 if "lora_B" in name else 1)

    checkpoint = merged(small_model("llama"), edited(adapter("llama"), tmp_path / "lora", edit))
    for name in checkpoint.tensors:
        checkpoint.load(name)

    with pytest.raises(AdapterMismatchError, match="changed nothing in 14 of 14 modules"):
        checkpoint.require_all_used()


@pytest.mark.parametrize("read", [None, {"model.layers.1.self_attn.q_proj.weight"}])
def test_one_module_whose_change_vanishes_in_rounding_is_an_error_that_names_it(
    read: set[str] | None,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    module = "model.layers.1.self_attn.q_proj"
    folder = edited(
        adapter("llama"),
        tmp_path / "lora",
        lambda tensors: tensors[f"base_model.model.{module}.lora_B.weight"].mul_(1e-12),
    )
    checkpoint = merged(small_model("llama"), folder)
    for name in read or checkpoint.tensors:
        checkpoint.load(name)

    with pytest.raises(AdapterMismatchError, match=rf"in 1 of 14 modules.*: {module}\.$"):
        checkpoint.require_all_used(read)


def test_a_module_that_changes_in_its_last_row_alone_has_changed(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    module = "model.layers.1.mlp.up_proj"
    folder = edited(
        adapter("llama"),
        tmp_path / "lora",
        lambda tensors: tensors[f"base_model.model.{module}.lora_B.weight"][:-1].zero_(),
    )
    checkpoint = merged(small_model("llama"), folder)
    for name in checkpoint.tensors:
        checkpoint.load(name)

    checkpoint.require_all_used()


def test_a_module_that_training_left_at_zero_is_not_an_error(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    module = "model.layers.1.self_attn.q_proj"
    folder = edited(
        adapter("llama"),
        tmp_path / "lora",
        lambda tensors: tensors[f"base_model.model.{module}.lora_B.weight"].zero_(),
    )
    checkpoint = merged(small_model("llama"), folder)
    for name in checkpoint.tensors:
        checkpoint.load(name)

    checkpoint.require_all_used()
    assert not checkpoint.is_untrained


def test_an_untrained_adapter_is_recognised(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            value.mul_(0 if "lora_B" in name else 1)

    checkpoint = merged(small_model("llama"), edited(adapter("llama"), tmp_path / "lora", edit))
    for name in checkpoint.tensors:
        checkpoint.load(name)

    checkpoint.require_all_used()
    assert checkpoint.is_untrained


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "rank"), [((2048, 5632), 16), ((8192, 1024), 64), ((513, 770), 8)]
)
def test_a_matrix_of_real_size_is_merged_as_peft_merges_it(
    shape: tuple[int, int], rank: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    import peft

    torch.manual_seed(0)
    rows, columns = shape
    layer = torch.nn.Linear(columns, rows, bias=False, dtype=dtype)
    model = peft.get_peft_model(
        torch.nn.ModuleDict({"proj": layer}),
        peft.LoraConfig(r=rank, lora_alpha=3 * rank - 1, target_modules=["proj"]),
    )
    torch.nn.init.normal_(model.base_model.model.proj.lora_B["default"].weight, std=0.02)
    model.save_pretrained(tmp_path / "lora")
    # PEFT records the wrapped class if it is not a transformers model.
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_mapping": None}))
    (tmp_path / "base").mkdir()
    save_file({"proj.weight": layer.weight.data.clone()}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"tie_word_embeddings": false}')
    expected = model.merge_and_unload()["proj"].weight.data

    weight = merged(tmp_path / "base", tmp_path / "lora").load("proj.weight")

    assert torch.equal(weight.view(torch.uint8), expected.view(torch.uint8))
