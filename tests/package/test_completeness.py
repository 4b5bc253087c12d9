"""What is merged is a whole model: its tokenizer is one, and has rows; no weight is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from packager.errors import MissingWeightsError
from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.progress import Silent
from packager.verbs.merge import merge
from tests.reports import Reports


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def as_version_4_saved_it(base: Path) -> None:
    """Two files more, which say again what `tokenizer_config.json` does, and are read after it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    (base / "added_tokens.json").write_text(json.dumps(tokenizer.get_added_vocab()))
    (base / "special_tokens_map.json").write_text(json.dumps(tokenizer.special_tokens_map))


def test_the_merged_tokenizer_is_the_adapters_where_the_base_has_files_of_version_4(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base, lora = copied(small_model("qwen3"), tmp_path / "base"), tmp_path / "lora"
    as_version_4_saved_it(base)
    shutil.copytree(adapter("qwen3"), lora)
    own = AutoTokenizer.from_pretrained(lora)
    own.add_tokens(["<think2>"])
    own.eos_token, own.pad_token = "<think2>", "<|im_start|>"
    own.save_pretrained(lora)
    before = AutoTokenizer.from_pretrained(base)

    merge(Request(str(lora), base=str(base)), tmp_path / "merged", Silent())

    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for name in ("eos_token", "pad_token"):
        assert getattr(merged, name) == getattr(own, name) != getattr(before, name)
    assert merged.get_vocab() == own.get_vocab()


def test_the_merged_template_is_the_adapters_wherever_it_keeps_it(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base, lora = copied(small_model("qwen3"), tmp_path / "base"), tmp_path / "lora"
    (base / "chat_template.jinja").write_text("{{ 'of the base' }}")
    shutil.copytree(adapter("qwen3"), lora)
    trained = (lora / "chat_template.jinja").read_text()
    (lora / "chat_template.jinja").unlink()
    config = json.loads((lora / "tokenizer_config.json").read_text())
    (lora / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": trained}))

    merge(Request(str(lora), base=str(base)), tmp_path / "merged", Silent())

    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == trained


@pytest.fixture
def with_tokens(adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """An adapter whose tokenizer has three tokens more than the model has rows."""
    lora = copied(adapter("llama"), tmp_path / "lora")
    tokenizer = AutoTokenizer.from_pretrained(lora)
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    tokenizer.save_pretrained(lora)
    return lora


@pytest.mark.parametrize(
    "start",
    [lambda request: merge(request, request.out, Silent()), prepare],
    ids=["merge", "gguf"],
)
def test_tokens_for_which_there_are_no_rows_are_refused(
    start: Callable[[Request], object], with_tokens: Path, tmp_path: Path
) -> None:
    request = Request(str(with_tokens), ("Q8_0",), out=tmp_path / "out")

    with pytest.raises(MissingWeightsError, match=r"3 tokens .* '<one>' \(128256\).* 128,256"):
        start(request)

    assert not (tmp_path / "out").exists()


def test_tokens_of_the_base_itself_for_which_it_has_no_rows_are_its_own_matter(
    with_tokens: Path, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = copied(small_model("llama"), tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(with_tokens / name, base / name)
    config = json.loads((with_tokens / "tokenizer_config.json").read_text())
    (with_tokens / "tokenizer_config.json").write_text(
        json.dumps(config | {"padding_side": "left"})
    )

    merged = merge(Request(str(with_tokens), base=str(base)), tmp_path / "merged", Silent())

    assert (merged.folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("names", "faults"),
    [
        (
            ["model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"],
            "model.layers.0.input_layernorm.weight is missing; "
            "model.layers.1.mlp.up_proj.weight is missing",
        ),
        (["model.embed_tokens.weight"], "model.embed_tokens.weight is missing"),
    ],
    ids=["layers", "the embedding"],
)
def test_a_base_that_lacks_tensors_is_refused_and_forced(
    names: list[str],
    faults: str,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = copied(small_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    lora = adapter("llama", targets=["q_proj"])
    request = Request(str(lora), base=str(base))

    with pytest.raises(MissingWeightsError, match=f"config.json: {faults}\\.") as caught:
        merge(request, tmp_path / "merged", Silent())
    assert not (tmp_path / "merged").exists()

    reports = Reports()
    assert "--force" in (caught.value.next_step or "")
    merge(Request(str(lora), base=str(base), force=True), tmp_path / "merged", reports)
    assert any(faults in line for line in reports.warnings)


def test_a_tensor_of_another_shape_is_refused(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = copied(small_model("qwen3moe"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    norm = "model.layers.1.input_layernorm.weight"
    width = tensors[norm].shape[0]
    tensors[norm] = tensors[norm][: width // 2].clone()
    experts = [name for name in tensors if ".layers.0.mlp.experts.7." in name]
    for name in experts:
        del tensors[name]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})

    with pytest.raises(MissingWeightsError) as caught:
        merge(Request(str(model)), tmp_path / "merged", Silent())

    assert f"{norm} is [{width // 2}], not [{width}]" in caught.value.message
    assert "model.layers.0.mlp.experts.gate_up_proj is [7, " in caught.value.message
    assert len(experts) == 3


def test_a_full_model_that_is_only_an_adapter_is_refused(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(small_model("llama") / "config.json", model)
    shutil.copy(adapter("llama") / "adapter_model.safetensors", model / "model.safetensors")

    with pytest.raises(MissingWeightsError, match="is missing") as caught:
        merge(Request(str(model)), tmp_path / "merged", Silent())

    assert "adapter_config.json" in (caught.value.next_step or "")
