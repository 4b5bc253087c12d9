"""A bitsandbytes base is replaced by its 16-bit original if that is available and fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.model.adapter import Adapter
from packager.progress import Silent
from packager.source.adapter_folder import open_adapter
from packager.source.base.find import find_base
from packager.source.base.full_precision import full_precision_name
from tests.reports import Reports


def quantized_copy(model: Path, folder: Path, **changes: object) -> Path:
    """A model whose configuration describes it as quantized; its weights do not matter here."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter_of(base: str, adapter: Path, folder: Path) -> Adapter:
    """The adapter, recorded as one of `base`."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return open_adapter(folder)


@pytest.fixture
def beside(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> tuple[Adapter, Path, Path]:
    """An adapter of a quantized base, that base, and its 16-bit original beside it."""
    quantized = quantized_copy(small_model("llama"), tmp_path / "tiny-unsloth-bnb-4bit")
    original = tmp_path / "tiny"
    original.symlink_to(small_model("llama"))
    lora = adapter_of(str(quantized), adapter("llama"), tmp_path / "lora")
    return lora, quantized, original


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
        ("someone/model", None),
        ("-bnb-4bit", None),
    ],
)
def test_the_name_of_the_16_bit_original(name: str, original: str | None) -> None:
    assert full_precision_name(name) == original


def test_a_16_bit_original_beside_the_base_is_used_and_reported(
    beside: tuple[Adapter, Path, Path],
) -> None:
    lora, quantized, original = beside
    progress = Reports()

    base = find_base(lora, None, None, progress)

    assert base.checkpoint.folder == original
    assert str(original) in base.reason
    assert str(quantized) in base.reason
    assert any("16-bit original is used" in line for line in progress.notes)
    assert any("--keep-base-quantized" in line for line in progress.notes)


@pytest.mark.parametrize("is_named", [True, False], ids=["--base", "--keep-base-quantized"])
def test_the_quantized_base_is_used_on_request(
    is_named: bool, beside: tuple[Adapter, Path, Path]
) -> None:
    lora, quantized, _ = beside

    wanted = str(quantized) if is_named else None
    base = find_base(lora, wanted, None, Silent(), keep_quantized=not is_named)

    assert base.checkpoint.folder == quantized


def test_a_16_bit_original_of_another_shape_is_not_used_and_reported(
    beside: tuple[Adapter, Path, Path], small_model: Callable[..., Path]
) -> None:
    lora, quantized, _ = beside
    shutil.rmtree(quantized)
    quantized_copy(small_model("llama"), quantized, vocab_size=4242)
    progress = Reports()

    base = find_base(lora, None, None, progress)

    assert base.checkpoint.folder == quantized
    assert any("vocab_size" in line and "4242" in line for line in progress.warnings)


@pytest.mark.parametrize("has_original", [True, False])
def test_a_16_bit_original_is_found_in_the_hugging_face_cache(
    has_original: bool,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    names = {"tiny-bnb-4bit": "0" * 40} | ({"tiny": "1" * 40} if has_original else {})
    for name, commit in names.items():
        repository = cache / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        snapshot = repository / "snapshots" / commit
        if name == "tiny":
            shutil.copytree(small_model("llama"), snapshot)
        else:
            quantized_copy(small_model("llama"), snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    lora = adapter_of("someone/tiny-bnb-4bit", adapter("llama"), tmp_path / "lora")
    progress = Reports()

    base = find_base(lora, None, None, progress)

    if has_original:
        assert (base.model_id, base.revision) == ("someone/tiny", "1" * 40)
    else:
        assert (base.model_id, base.revision) == ("someone/tiny-bnb-4bit", "0" * 40)
        assert any("someone/tiny is not in the cache" in line for line in progress.notes)
