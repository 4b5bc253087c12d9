"""Whatever the names of an adapter's tensors, the merge is right, or it is an error."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import AdapterMismatchError, BaseMismatchError, FtpackError, NonFiniteError
from packager.model.checkpoint import FolderCheckpoint
from tests.merge.compared import differences, opened
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, merge_with_peft

Rename = Callable[[str], str]
PREFIX = "base_model.model."
MUTATIONS: dict[str, Rename] = {
    "no-prefix": lambda n: n.removeprefix(PREFIX),
    "half-prefix": lambda n: n.replace(PREFIX, "base_model.", 1),
    "no-base": lambda n: n.removeprefix("base_model."),
    "twice": lambda n: PREFIX + n,
    "peft-twice": lambda n: n.replace(PREFIX, f"{PREFIX}{PREFIX}", 1),
    "compiled": lambda n: n.replace(PREFIX, f"{PREFIX}_orig_mod.", 1),
    "compiled-first": lambda n: f"_orig_mod.{n}",
    "compiled-module": lambda n: n.replace(".self_attn", "._orig_mod.self_attn"),
    "parallel": lambda n: f"module.{n}",
    "parallel-inside": lambda n: n.replace(PREFIX, f"{PREFIX}module.", 1),
    "fsdp": lambda n: n.replace(PREFIX, f"{PREFIX}_fsdp_wrapped_module.", 1),
    "checkpointed": lambda n: n.replace("proj.", "proj._checkpoint_wrapped_module."),
    "named-default": lambda n: re.sub(r"(lora_\w+)\.", r"\1.default.", n),
    "named-other": lambda n: re.sub(r"(lora_\w+)\.", r"\1.style.", n),
    "named-first": lambda n: re.sub(r"(lora_\w+)\.", r"\1.0.", n),
    "named-at-the-end": lambda n: f"{n}.default",
    "no-weight": lambda n: n.removesuffix(".weight"),
    "weight-twice": lambda n: f"{n}.weight",
    "bias": lambda n: n.replace(".weight", ".bias"),
    "lower-case": lambda n: n.lower(),
    "upper-case": lambda n: n.upper(),
    "no-underscore": lambda n: n.replace("lora_", "lora"),
    "diffusers": lambda n: n.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "kohya": lambda n: n.replace(".", "_"),
    "other-model": lambda n: n.replace("model.layers", "transformer.h"),
    "no-model": lambda n: n.replace("model.layers", "layers"),
    "vision": lambda n: n.replace("model.layers", "model.language_model.layers"),
    "vision-outside": lambda n: n.replace("model.layers", "language_model.model.layers"),
    "next-layer": lambda n: re.sub(r"layers\.(\d)", lambda m: f"layers.{int(m[1]) + 2}", n),
    "other-module": lambda n: n.replace("q_proj", "k_proj"),
    "other-parent": lambda n: n.replace("self_attn", "attention"),
    "short-name": lambda n: n.replace("q_proj", "q"),
    "base-layer": lambda n: n.replace(".lora", ".base_layer.lora"),
    "as-saved-module": lambda n: n.replace(".lora", ".modules_to_save.lora"),
    "space": lambda n: f"{n} ",
    "dot": lambda n: f"{n}.",
    "dots": lambda n: n.replace(".lora", "..lora"),
}
EXTENTS = ["all", "half", "one"]


def renamed(adapter: Path, folder: Path, rename: Rename, extent: str) -> bool:
    """A copy of an adapter with some of its names changed; False if that changes none."""
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    names = sorted(name for name in tensors if rename(name) != name)
    chosen = {"all": names, "half": names[::2], "one": names[:1]}[extent]
    result = {rename(name) if name in chosen else name: tensors[name] for name in tensors}
    save_file(result, folder / "adapter_model.safetensors")
    return bool(chosen)


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_no_tensor_name_leads_silently_to_the_base(
    name: str, mutation: str, extent: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    require_right_or_refused(name, mutation, extent, tiny_base("tied"), tmp_path)


CAUSES = {
    "compiled": "saved from a compiled model",
    "parallel-inside": "saved from a wrapped model",
    "no-model": "'layers' in their names is 'model.layers' in this one",
    "vision": "'model.language_model.layers' in their names is 'model.layers' in this one",
    "other-model": None,
}


@pytest.mark.parametrize("mutation", CAUSES)
def test_both_ways_of_merging_give_the_same_cause_for_unknown_names(
    mutation: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, refusals = tiny_base("tied"), []
    for name in ("lora", "dora"):
        adapter = make_adapter(base, "tied", METHODS[name], tmp_path / name / "good")
        folder = tmp_path / name / "renamed"
        renamed(adapter, folder, MUTATIONS[mutation], "all")
        with pytest.raises(AdapterMismatchError, match="belong to no targeted module") as caught:
            opened(base, folder)
        refusals.append(caught.value)

    causes = [re.search(r"module of this base( \(.*\))?: ", error.message) for error in refusals]
    named = {cause and cause[1] for cause in causes}
    if CAUSES[mutation] is None:
        assert named == {None}
    else:
        assert len(named) == 1
        assert str(CAUSES[mutation]) in str(named.pop())
    assert refusals[0].next_step == refusals[1].next_step


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_an_adapter_of_the_text_model_is_named_as_one_on_a_multimodal_model(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("vlm")
    targets = r".*\.layers\.\d+\..*(q_proj|down_proj)"
    method = METHODS[name]
    method = replace(method, options={**method.options, "target_modules": targets})
    adapter = make_adapter(base, "vlm", method, tmp_path / "good")
    assert renamed(adapter, tmp_path / "text", lambda n: n.replace("language_model.", ""), "all")

    with pytest.raises(
        AdapterMismatchError,
        match=r"'model\.layers' in their names is 'model\.language_model\.layers' in this one",
    ):
        opened(base, tmp_path / "text")


def test_doras_magnitudes_are_named_if_the_configuration_says_plain_lora(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["dora"], tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": False}))

    with pytest.raises(AdapterMismatchError, match=r"this base \(DoRA's magnitudes\): "):
        opened(tiny_base("tied"), adapter)


# Those that do not depend on the names of LoRA's tensors.
GENERAL = [
    "no-prefix", "twice", "compiled", "compiled-module", "parallel", "named-at-the-end",
    "weight-twice", "no-model", "next-layer", "other-parent",
]  # fmt: skip


@pytest.mark.parametrize("extent", ["all", "one"])
@pytest.mark.parametrize("mutation", GENERAL)
@pytest.mark.parametrize("name", ["loha", "lokr", "ia3", "lora-save-head"])
def test_no_tensor_name_of_another_method_leads_silently_to_the_base(
    name: str, mutation: str, extent: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    require_right_or_refused(name, mutation, extent, tiny_base("tied"), tmp_path)


def require_right_or_refused(
    name: str, mutation: str, extent: str, base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(base, "tied", METHODS[name], tmp_path / "good")
    good = opened(base, adapter)
    if not renamed(adapter, tmp_path / "mutated", MUTATIONS[mutation], extent):
        pytest.fail("the mutation changes nothing")

    try:
        checkpoint = opened(base, tmp_path / "mutated")
    except FtpackError as error:
        refusal = error
    else:
        for tensor in checkpoint.tensors:
            assert torch.equal(checkpoint.load(tensor), good.load(tensor)), tensor
        return
    assert refusal.next_step


def edited(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return adapter


@pytest.mark.parametrize(
    "name", ["dora", "loha", "oft", "adalora", "lora-save-head", "shira", "frod"]
)
def test_a_missing_tensor_is_an_error(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS[name], tmp_path / "adapter")
    edited(adapter, lambda tensors: tensors.pop(sorted(tensors)[-1]))

    with pytest.raises(AdapterMismatchError):
        opened(tiny_base("tied"), adapter)


@pytest.mark.parametrize("part", ["frod_V.mlp_down_proj", "frod_s_indices.mlp_down_proj", "frod_"])
def test_frod_without_its_projections_is_an_error(
    part: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["frod"], tmp_path / "adapter")

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(f"{PREFIX[:11]}{part}")]:
            del tensors[name]

    edited(adapter, cut)

    with pytest.raises(AdapterMismatchError):
        opened(tiny_base("tied"), adapter)


@pytest.mark.parametrize("name", ["dora", "loha", "ia3", "lora-save-norms"])
def test_a_tensor_of_another_shape_is_an_error_that_names_both_shapes(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS[name], tmp_path / "adapter")

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        key = sorted(tensors)[0]
        tensors[key] = tensors[key][:-1].clone()

    edited(adapter, cut)

    with pytest.raises(BaseMismatchError, match=r"\[\d+.*\] found, \[\d+.*\] fits"):
        opened(tiny_base("tied"), adapter)


def test_nan_in_another_method_is_an_error_that_names_the_tensor(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["loha"], tmp_path / "adapter")
    edited(adapter, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))

    with pytest.raises(NonFiniteError, match="hada_"):
        opened(tiny_base("tied"), adapter)


@pytest.mark.parametrize("name", ["lora-bias-all", "lora-bias-only"])
def test_a_trained_bias_that_is_not_in_the_file_is_an_error(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("biased"), "biased", METHODS[name], tmp_path / "adapter")
    edited(adapter, lambda tensors: tensors.pop(next(n for n in tensors if n.endswith("bias"))))

    with pytest.raises(AdapterMismatchError, match=r"1 of \d+ biases"):
        opened(tiny_base("biased"), adapter)


def test_two_names_for_one_place_are_an_error(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["dora"], tmp_path / "adapter")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    edited(
        adapter,
        lambda t: t.update({f"{key}.default.weight": torch.zeros_like(t[f"{key}.weight"])}),
    )

    with pytest.raises(AdapterMismatchError, match="the same to PEFT"):
        opened(tiny_base("tied"), adapter)


def test_a_setting_that_this_peft_does_not_know_is_refused(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["lora"], tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_hyperspace": True}))

    with pytest.raises(FtpackError, match="use_hyperspace"):
        opened(tiny_base("tied"), adapter)


def test_an_untrained_adapter_is_recognised(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["loha"], tmp_path / "adapter")

    def untrain(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            value.mul_(0 if name.endswith("hada_w2_a") else 1)

    checkpoint = opened(tiny_base("tied"), edited(adapter, untrain))
    for tensor in checkpoint.tensors:
        checkpoint.load(tensor)

    checkpoint.require_all_used()
    assert checkpoint.is_untrained


def test_a_change_that_vanishes_in_rounding_is_an_error(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["loha"], tmp_path / "adapter")
    edited(adapter, lambda tensors: [value.mul_(1e-20) for value in tensors.values()])
    checkpoint = opened(tiny_base("tied"), adapter)
    for tensor in checkpoint.tensors:
        checkpoint.load(tensor)

    with pytest.raises(AdapterMismatchError, match="changed nothing"):
        checkpoint.require_all_used()


def test_what_was_never_loaded_is_an_error(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["dora"], tmp_path / "adapter")
    checkpoint = opened(tiny_base("tied"), adapter)
    checkpoint.load("model.layers.0.self_attn.q_proj.weight")

    with pytest.raises(AdapterMismatchError, match="5 tensors was not used"):
        checkpoint.require_all_used()


def expert_adapter(base: Path, folder: Path, targets: list[str]) -> Path:
    """An adapter for transformers 4's mixture of experts: each expert has its own linear layers."""
    make_adapter(base, "moe", METHODS["lora"], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": targets}))
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name, info in FolderCheckpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            rows, columns = info.shape
            stem = f"{PREFIX}{module}"
            tensors[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(4, columns, generator=random)
            tensors[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(rows, 4, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_with_a_lora_for_each_expert_is_merged_as_peft_merges_it(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, targets = tiny_base("moe"), ["q_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = expert_adapter(base, tmp_path / "adapter", targets)
    wanted = FolderCheckpoint(merge_with_peft(base, "moe", adapter, tmp_path / "peft"))

    checkpoint = opened(base, adapter)

    assert differences(checkpoint, wanted) == []
    checkpoint.require_all_used()


def test_mixtral_experts_under_their_old_names_are_merged_as_peft_merges_them(
    tmp_path: Path,
) -> None:
    """`block_sparse_moe.experts.0.w1`: transformers 5 has `mlp.experts.gate_up_proj` for them."""
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in FolderCheckpoint(
        tmp_path / "base").tensors  # fmt: skip
    adapter = expert_adapter(tmp_path / "base", tmp_path / "adapter", ["q_proj", "w1", "w2", "w3"])
    wanted = FolderCheckpoint(merge_with_peft(tmp_path / "base", "moe", adapter, tmp_path / "peft"))

    checkpoint = opened(tmp_path / "base", adapter)

    assert differences(checkpoint, wanted) == []
    assert differences(checkpoint, FolderCheckpoint(tmp_path / "base")) != []
    checkpoint.require_all_used()


def test_an_adapter_with_half_of_a_fused_expert_is_refused(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = expert_adapter(tiny_base("moe"), tmp_path / "adapter", ["gate_proj"])

    with pytest.raises(FtpackError, match="gate"):
        opened(tiny_base("moe"), adapter)


def test_an_adapter_without_the_models_new_prefix_is_merged_as_peft_merges_it(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 4 called LLaVA's text model `language_model.model`."""
    base = tiny_base("vlm")
    adapter = make_adapter(base, "vlm", METHODS["lora"], tmp_path / "adapter")

    def older(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("model.language_model.layers", "language_model.model.layers")
            tensors[old] = tensors.pop(name)

    edited(adapter, older)
    wanted = FolderCheckpoint(merge_with_peft(base, "vlm", adapter, tmp_path / "peft"))

    checkpoint = opened(base, adapter)

    assert differences(checkpoint, wanted) == []
    checkpoint.require_all_used()


@pytest.mark.parametrize("beginning", ["model.", "somewhere."])
def test_names_that_peft_does_not_translate_are_read_correctly_or_refused(
    beginning: str, tmp_path: Path
) -> None:
    """PEFT ignores an adapter of transformers 4 for Qwen2.5-VL, and saves the base."""
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
        "out_hidden_size": 64,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    pattern = r".*layers\.\d+\.self_attn\.(q_proj|v_proj)"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=pattern, task_type="CAUSAL_LM"))
    tuned.save_pretrained(tmp_path / "adapter")

    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.add_(1)
    tuned.save_pretrained(tmp_path / "adapter")
    wanted = opened(tmp_path / "base", tmp_path / "adapter")

    def older(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.language_model.", beginning)] = tensors.pop(name)

    shutil.copytree(tmp_path / "adapter", tmp_path / "older")
    edited(tmp_path / "older", older)

    if beginning == "somewhere.":
        with pytest.raises(AdapterMismatchError, match=r"somewhere\.layers\.0"):
            opened(tmp_path / "base", tmp_path / "older")
        return
    merged = opened(tmp_path / "base", tmp_path / "older")
    for name in merged.tensors:
        assert torch.equal(merged.load(name), wanted.load(name)), name
    merged.require_all_used()
    plain = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = PeftModel.from_pretrained(plain, str(tmp_path / "older")).merge_and_unload()
    assert all(torch.equal(value, before[name]) for name, value in usual.state_dict().items())
