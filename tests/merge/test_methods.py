"""Every method of PEFT is merged as PEFT merges it, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import InputRefusedError
from packager.merge.route import merge_one
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.save.safetensors import save_safetensors
from packager.source.adapter_folder import open_adapter
from tests.merge.compared import differences, opened
from tests.merge.deviations import DEVIATIONS
from tests.merge.gguf_compared import gguf_differences
from tests.merge.methods import METHODS, REFUSED, document
from tests.merge.tiny import (
    HIDDEN,
    KINDS,
    VOCABULARY,
    Kind,
    load_base,
    make_adapter,
    merge_with_peft,
)

CELLS = [
    (name, kind)
    for name, method in METHODS.items()
    for kind in KINDS
    if method.outcome(kind) != "absent"
]


# What PEFT computes again from the base, with results that depend on machine and threads.
FACTORED = [
    "pissa", "olora", "mica", "kasa", "osf", "psoft", "adamss", "adamss-dynamic", "frod",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _scikit_learn(request: pytest.FixtureRequest) -> None:
    if "adamss" in request.node.name:
        pytest.importorskip("sklearn", reason="AdaMSS clusters with scikit-learn")


@pytest.mark.parametrize(("name", "kind"), CELLS, ids=[f"{n}-{k}" for n, k in CELLS])
def test_a_method_is_merged_as_peft_merges_it_or_refused(
    name: str,
    kind: Kind,
    tiny_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, folder = METHODS[name], tiny_base(kind)
    outcome = method.outcome(kind)
    if outcome == "impossible":
        with pytest.raises(Exception, match=re.escape(method.error(kind))):
            make_adapter(folder, kind, method, tmp_path / "adapter")
        return
    adapter = make_adapter(folder, kind, method, tmp_path / "adapter")
    if outcome == "refused":
        with pytest.raises(InputRefusedError, match=re.escape(method.error(kind))) as caught:
            opened(folder, adapter, readable=False)
        assert caught.value.next_step
        return

    checkpoint = opened(folder, adapter)

    if outcome == "identical":
        wanted = merge_with_peft(folder, kind, adapter, tmp_path / "peft")
        assert differences(checkpoint, FolderCheckpoint(wanted)) == []
        assert gguf_differences(checkpoint, wanted, tmp_path / "gguf", monkeypatch) == []
        assert bool(checkpoint.facts.warnings) == (name in FACTORED)
    else:
        assert "no longer tied" in checkpoint.facts.warnings[0]
        for tensor in checkpoint.tensors:
            checkpoint.load(tensor)
    checkpoint.require_all_used()
    assert not checkpoint.is_untrained


def test_the_comparison_notices_another_adapter(
    tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_base("fused")
    one, other = (
        make_adapter(folder, "fused", METHODS[name], tmp_path / name) for name in ("lora", "rslora")
    )
    wanted = merge_with_peft(folder, "fused", one, tmp_path / "peft")
    different = gguf_differences(opened(folder, other), wanted, tmp_path / "gguf", monkeypatch)
    layers = ("attn_qkv", "ffn_up", "ffn_down")
    assert different == sorted(f"blk.{i}.{layer}.weight" for i in range(2) for layer in layers)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora", "tied"),
        ("lora", "biased"),
        ("lora-save-both", "tied"),
        ("lora-save-both", "biased"),
        ("lora-embeddings", "tied"),
        ("dora", "biased"),
    ],
)
def test_a_vocabulary_that_training_resized_comes_from_the_adapter(
    name: str, kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder, rows = tiny_base(kind), VOCABULARY + 5
    adapter = make_adapter(folder, kind, METHODS[name], tmp_path / "adapter", rows=rows)
    merge_with_peft(folder, kind, adapter, tmp_path / "peft", rows=rows)
    with pytest.raises(RuntimeError, match="size mismatch"):
        merge_with_peft(folder, kind, adapter, tmp_path / "not resized")

    checkpoint = opened(folder, adapter)

    assert checkpoint.config.values["vocab_size"] == rows
    if METHODS[name].outcome(kind) == "identical":
        assert differences(checkpoint, FolderCheckpoint(tmp_path / "peft")) == []
    else:
        assert checkpoint.load("lm_head.weight").shape == (rows, HIDDEN)
        for tensor in checkpoint.tensors:
            checkpoint.load(tensor)
    checkpoint.require_all_used()


def test_half_of_a_resized_vocabulary_is_refused(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    method, folder = METHODS["lora-save-embeddings"], tiny_base("biased")
    adapter = make_adapter(folder, "biased", method, tmp_path / "adapter", rows=VOCABULARY + 5)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if "lm_head" not in n}, path)

    with pytest.raises(InputRefusedError, match="101, the base one of 96"):
        opened(folder, adapter)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    _, setting, words = REFUSED[name]
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain | setting))

    with pytest.raises(InputRefusedError, match=re.escape(words)) as caught:
        open_adapter(tmp_path)

    assert str(tmp_path / "adapter_config.json") in caught.value.message
    assert caught.value.next_step


def test_a_package_that_peft_needs_is_named(
    tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tiny_base("tied"), "tied", METHODS["loha"], tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "ADAMSS", "target_modules": ["q_proj"]}))
    monkeypatch.setitem(sys.modules, "sklearn", None)

    with pytest.raises(InputRefusedError, match="scikit-learn is required") as caught:
        opened(tiny_base("tied"), adapter)

    assert "pip install scikit-learn" in str(caught.value.next_step)


def test_every_method_of_peft_is_merged_or_refused() -> None:
    from peft import PeftType

    from packager.source.methods import MERGEABLE, find_refusal

    unknown = [
        method.value
        for method in PeftType
        if method.value not in MERGEABLE
        and "none of the methods" in find_refusal({"peft_type": method.value}).why  # type: ignore[union-attr]
    ]
    assert not unknown


def test_the_page_of_methods_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"

    assert page.read_text(encoding="utf-8") == document()


@pytest.mark.parametrize("test", sorted({item.test for item in DEVIATIONS}))
def test_the_tests_that_the_page_names_exist(test: str) -> None:
    file, _, function = test.partition("::")

    assert f"def {function}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


# The ways in which an adapter can touch embeddings that input and output share.
TOUCHING = [name for name in METHODS if re.search("embeddings|head|tied|save-both|tokens", name)]


@pytest.mark.parametrize("kind", ["tied", "scaled", "conv1d"])
@pytest.mark.parametrize("name", TOUCHING)
def test_with_tied_embeddings_the_result_computes_what_the_adapters_model_computes(
    name: str, kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    import peft

    folder = tiny_base(kind, torch.float32)
    adapter = make_adapter(folder, kind, METHODS[name], tmp_path / "adapter")
    checkpoint = opened(folder, adapter)
    (tmp_path / "merged").mkdir()
    save_safetensors(checkpoint, tmp_path / "merged", Silent())
    config = checkpoint.config.values
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ids = torch.tensor([[3, 1, 4, 5, 9]])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        tuned = peft.PeftModel.from_pretrained(load_base(folder, kind), str(adapter))
        wanted = tuned(ids).logits
        usual = tuned.merge_and_unload()(ids).logits
        model = load_base(tmp_path / "merged", kind)
        merged = model(ids).logits
        unchanged = load_base(folder, kind)(ids).logits

    torch.testing.assert_close(merged, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, unchanged, atol=1e-2)
    # Where PEFT's own merge gives another model, that is the reason why ftpack does not follow it.
    is_apart = METHODS[name].outcome(kind) == "right"
    assert torch.allclose(usual, wanted, rtol=1e-4, atol=1e-4) != is_apart
    has_head = any("lm_head" in tensor for tensor in load_file(
        tmp_path / "merged" / "model.safetensors"))  # fmt: skip
    assert has_head != config.get("tie_word_embeddings", True)


@pytest.mark.parametrize("name", ["lora-embeddings", "lora-head", "tokens", "dora"])
def test_a_tied_weight_that_a_checkpoint_holds_twice_is_right_on_both_sides(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    import peft

    folder, ids = tiny_base("tied", torch.float32), torch.tensor([[3, 1, 4, 5, 9]])
    adapter = make_adapter(folder, "tied", METHODS[name], tmp_path / "adapter")
    shutil.copytree(folder, tmp_path / "twice")
    path = tmp_path / "twice" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    checkpoint = opened(tmp_path / "twice", adapter)
    (tmp_path / "merged").mkdir()
    save_safetensors(checkpoint, tmp_path / "merged", Silent())
    config = checkpoint.config.values
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(load_base(folder, "tied"), str(adapter))(ids)
        merged = load_base(tmp_path / "merged", "tied")(ids)

    torch.testing.assert_close(merged.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    # transformers compares what it finds twice; other loaders go by what the configuration says.
    is_apart = name in ("lora-embeddings", "lora-head")
    assert config["tie_word_embeddings"] != is_apart
    assert any("no longer tied" in line for line in checkpoint.facts.warnings) == is_apart
    checkpoint.require_all_used()


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], r".*(q_proj|lm_head)"])
def test_a_tied_head_is_untied_whether_or_not_the_checkpoint_stores_it(
    targets: object, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """Without a copy of the base's embedding in the file: `save_embedding_layers=False`."""
    method = replace(METHODS["lora-head"], options={"r": 4, "target_modules": targets})
    adapter = make_adapter(tiny_base("tied"), "tied", method, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if ".lora_" in n}, path)
    twice = tmp_path / "twice"
    shutil.copytree(tiny_base("tied"), twice)
    tensors = load_file(twice / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, twice / "model.safetensors")

    once, both = opened(tiny_base("tied"), adapter), opened(twice, adapter)

    untied = {**FolderCheckpoint(twice).config.values, "tie_word_embeddings": False}
    assert both.config.values == once.config.values == untied
    assert both.facts.warnings == once.facts.warnings
    assert torch.equal(both.load("lm_head.weight"), once.load("lm_head.weight"))
    assert torch.equal(both.load("model.embed_tokens.weight"), embedding)


def test_a_base_that_was_saved_without_the_heads_prefix_keeps_its_names(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """GPT-2 on the Hub: `h.0.attn.c_attn.weight`."""
    folder = tiny_base("conv1d")
    adapter = make_adapter(folder, "conv1d", METHODS["lora-save-head"], tmp_path / "adapter")
    merge_with_peft(folder, "conv1d", adapter, tmp_path / "peft")
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for path in (bare / "model.safetensors", tmp_path / "peft" / "model.safetensors"):
        tensors = load_file(path)
        save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, path)

    checkpoint = opened(bare, adapter)

    assert differences(checkpoint, FolderCheckpoint(tmp_path / "peft")) == []
    assert "h.0.attn.c_attn.weight" in checkpoint.tensors
    assert "lm_head.weight" in checkpoint.tensors


def test_an_adapter_in_a_bin_file_is_merged_the_same(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_base("tied")
    adapter = make_adapter(folder, "tied", METHODS["dora"], tmp_path / "adapter")
    wanted = FolderCheckpoint(merge_with_peft(folder, "tied", adapter, tmp_path / "peft"))
    path = adapter / "adapter_model.safetensors"
    torch.save(load_file(path), adapter / "adapter_model.bin")
    path.unlink()

    assert differences(opened(folder, adapter), wanted) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dora", "loha", "oft", "vera", "lora-save-both"])
def test_an_adapter_in_16_bits_is_merged_as_peft_merges_it(
    name: str, dtype: torch.dtype, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_base("tied")
    adapter = make_adapter(folder, "tied", METHODS[name], tmp_path / "adapter", dtype)
    wanted = FolderCheckpoint(merge_with_peft(folder, "tied", adapter, tmp_path / "peft"))

    assert differences(opened(folder, adapter), wanted) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "name",
    ["lora-bias-all", "dora", "adalora", "pissa", "lora-save-head", "frod", "adamss", "kasa",
     "boft", "supertuning-unsaved"],
)  # fmt: skip
def test_a_base_in_another_precision_is_merged_as_peft_merges_it(
    name: str, dtype: torch.dtype, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_base("tied", dtype)
    adapter = make_adapter(folder, "tied", METHODS[name], tmp_path / "adapter")
    wanted = FolderCheckpoint(merge_with_peft(folder, "tied", adapter, tmp_path / "peft"))

    assert differences(opened(folder, adapter), wanted) == []


@pytest.mark.parametrize(
    "name", ["dora", "pissa", "loha", "vera", "lora-all-linear", "osf", "frod"]
)
def test_memory_holds_only_one_module_of_the_base(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Watched(FolderCheckpoint):
        def load(self, name: str) -> torch.Tensor:
            nonlocal most
            tensor = super().load(name)
            alive.append(weakref.ref(tensor))
            held = [tensor.nbytes for tensor in (ref() for ref in alive) if tensor is not None]
            most = max(most, sum(held))
            return tensor

    folder = tiny_base("biased")
    adapter = make_adapter(folder, "biased", METHODS[name], tmp_path / "adapter")
    base = Watched(folder)

    checkpoint = merge_one(base, open_adapter(adapter), "cpu")
    assert not alive, "nothing is read before it is asked for"
    for tensor in checkpoint.tensors:
        checkpoint.load(tensor)

    largest = max(info.size_bytes for info in base.tensors.values())
    # Its bias counts, too.
    assert most <= largest + 2 * HIDDEN * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("name", ["dora", "loha", "oft", "pissa", "lora-save-head"])
def test_on_a_gpu_a_method_is_what_merge_and_unload_gives_there(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    import peft

    folder = tiny_base("tied")
    adapter = make_adapter(folder, "tied", METHODS[name], tmp_path / "adapter")
    model = load_base(folder, "tied").to("cuda")
    usual = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    usual.to("cpu").save_pretrained(tmp_path / "peft")

    checkpoint = opened(folder, adapter, device="cuda")

    assert differences(checkpoint, FolderCheckpoint(tmp_path / "peft")) == []
