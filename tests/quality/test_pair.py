"""A quantized base is paired with its 16-bit original, as far as this machine has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from packager.model.adapter import Adapter
from packager.progress import Silent
from packager.quality.pair import Pair, find_pair
from packager.source.adapter_folder import open_adapter
from packager.source.base.find import find_base

RECORDED = "someone/tiny-bnb-4bit"
SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def lora(adapter: Callable[..., Path], tmp_path: Path) -> Adapter:
    """An adapter that records a quantized base by its id."""
    shutil.copytree(adapter("llama"), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = RECORDED
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    return open_adapter(tmp_path / "lora")


def put(cache: Path, model_id: str, model: Path, **changes: object) -> Path:
    """A model in the cache, with a changed configuration."""
    repository = cache / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot)
    config = json.loads((snapshot / "config.json").read_text()) | changes
    (snapshot / "config.json").write_text(json.dumps(config))
    return snapshot


def pair_of(lora: Adapter, wanted: str | None, keep_quantized: bool = False) -> Pair | None:
    base = find_base(lora, wanted, None, Silent(), keep_quantized)
    return find_pair(base, lora)


def test_the_16_bit_original_of_a_quantized_base_comes_from_the_cache(
    cache: Path, lora: Adapter, small_model: Callable[..., Path]
) -> None:
    quantized = put(cache, RECORDED, small_model("llama"), quantization_config=SETTINGS)
    original = put(cache, "someone/tiny", small_model("llama"))

    pair = pair_of(lora, None, keep_quantized=True)

    assert pair is not None
    assert not pair.is_full_precision_used
    assert pair.quantized is not None
    assert pair.quantized.folder == quantized
    assert pair.full_precision is not None
    assert pair.full_precision.folder == original


def test_a_16_bit_original_given_as_base_is_paired_with_the_recorded_base(
    cache: Path, lora: Adapter, small_model: Callable[..., Path]
) -> None:
    quantized = put(cache, RECORDED, small_model("llama"), quantization_config=SETTINGS)

    pair = pair_of(lora, str(small_model("llama")))

    assert pair is not None
    assert pair.is_full_precision_used
    assert (pair.name, pair.settings) == (RECORDED, SETTINGS)
    assert pair.quantized is not None
    assert pair.quantized.folder == quantized


def test_a_configuration_alone_gives_the_settings(
    cache: Path, lora: Adapter, small_model: Callable[..., Path]
) -> None:
    quantized = put(cache, RECORDED, small_model("llama"), quantization_config=SETTINGS)
    (quantized / "model.safetensors").unlink()

    pair = pair_of(lora, str(small_model("llama")))

    assert pair is not None
    assert (pair.settings, pair.quantized) == (SETTINGS, None)


def test_a_quantized_base_of_which_only_the_name_is_known(
    cache: Path, lora: Adapter, small_model: Callable[..., Path]
) -> None:
    pair = pair_of(lora, str(small_model("llama")))

    assert pair is not None
    assert (pair.name, pair.settings, pair.quantized) == (RECORDED, None, None)


def test_models_of_other_shapes_and_formats_are_not_a_pair(
    cache: Path, lora: Adapter, small_model: Callable[..., Path]
) -> None:
    put(cache, RECORDED, small_model("llama"), quantization_config=SETTINGS, vocab_size=4242)
    assert pair_of(lora, str(small_model("llama"))) is None

    shutil.rmtree(cache)
    fp8 = put(cache, "someone/tiny-fp8", small_model("llama"),
              quantization_config={"quant_method": "fp8"})  # fmt: skip
    assert pair_of(lora, str(fp8)) is None
