"""How near the merge is to what was trained: on the quantized base, and on its 16-bit twin.

Expected figures come from bitsandbytes, PEFT and llama.cpp, by whole weights.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packager.package.fingerprint import tool_versions
from safetensors.torch import load_file

from packager.package.plan import Request
from packager.package.prepare import Package, prepare
from packager.progress import Silent
from packager.quality.base_choice import Nearness
from packager.verbs.build import build
from packager.verbs.merge import merge
from testing.usual_route import (
    convert_with_llama_cpp,
    merge_with_peft,
    quantize_with_llama_cpp,
    read_weights,
)
from tests.command import ftpack
from tests.told import Told

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

QUANTIZED = "tiny-unsloth-bnb-4bit"
# Their rows are few enough that each is compared; a GGUF has them as they are.
TARGETS = ["v_proj", "o_proj"]
GGUF_NAMES = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
# What Unsloth's dynamic quantization keeps in 16 bits, beside the head.
SKIPPED = "model.layers.1.self_attn.v_proj"


class Notes(Told):
    def about(self, text: str) -> str:
        (found,) = [note for note in self.notes if text in note]
        return found


def quantize(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Save a base as bitsandbytes packs it; gives the weights that training on it sees."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", SKIPPED],
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=settings, device_map={"": "cpu"}
    )
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.name)
    model.save_pretrained(folder)
    weights: dict[str, torch.Tensor] = model.dequantize(dtype=torch.bfloat16).state_dict()
    return weights


@pytest.fixture
def models(small_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with a 16-bit model, the same as bitsandbytes quantizes it, and dequantized."""
    from safetensors.torch import save_file

    twin = tmp_path / "tiny"
    shutil.copytree(small_model("llama"), twin)
    weights = quantize(twin, tmp_path / QUANTIZED)
    seen = tmp_path / "dequantized"
    shutil.copytree(twin, seen)
    save_file({k: v.contiguous() for k, v in weights.items()}, seen / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    return tmp_path


@pytest.fixture
def lora(models: Path, adapter: Callable[..., Path]) -> Callable[..., Path]:
    """An adapter that records the quantized base."""

    def make(**options: Any) -> Path:
        folder = models / "lora"
        shutil.copytree(adapter("llama", models / "tiny", targets=TARGETS, **options), folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(models / QUANTIZED)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return make


def in_fp32(model: Path, adapter: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What PEFT merges where nothing is rounded to 16 bits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    return {name: tensor.numpy() for name, tensor in merged.items()}


def distance(made: dict[str, Any], trained: dict[str, Any], names: Iterable[str]) -> float:
    names = list(names)
    error = sum(np.square(np.float64(made[name]) - trained[name]).sum() for name in names)
    return float(np.sqrt(error / sum(np.square(np.float64(trained[n])).sum() for n in names)))


Figures = dict[str, dict[str, float]]


def expected(
    models: Path, adapter: Path, names: Iterable[str], bases: Iterable[str] = ("quantized", "twin")
) -> Figures:
    """The distances in 16 bits, by PEFT's own merges, which stay in `models`."""
    trained = in_fp32(models / "dequantized", adapter)
    found = {}
    for base in bases:
        folder = models / ("tiny" if base == "twin" else "dequantized")
        usual = merge_with_peft(folder, adapter, models / f"usual-{base}")
        merged = load_file(usual / "model.safetensors")
        found[base] = distance({k: v.float() for k, v in merged.items()}, trained, names)
    return {"16 bits": found}


def expected_quantized(
    models: Path, adapter: Path, llama_cpp: Path, names: Iterable[str], quant: str
) -> Figures:
    """The distances in a quant, by llama.cpp's converter and quantizer."""
    trained = in_fp32(models / "dequantized", adapter)
    found = {}
    for base in ("quantized", "twin"):
        wide = models / "wide.gguf"
        convert_with_llama_cpp(models / f"usual-{base}", wide, "bf16", llama_cpp)
        gguf = quantize_with_llama_cpp(wide, models / f"{base}.gguf", quant)
        in_gguf = read_weights(gguf, llama_cpp)
        found[base] = distance({name: in_gguf[gguf_name(name)] for name in names}, trained, names)
    return {quant: found}


def gguf_name(name: str) -> str:
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.weight"


def figures(nearness: Nearness | None) -> dict[str, dict[str, float | None]]:
    assert nearness is not None
    return {d.form: {"quantized": d.quantized, "twin": d.twin} for d in nearness.distances}


def weights(*layers_and_modules: tuple[int, str]) -> set[str]:
    return {f"model.layers.{n}.self_attn.{module}.weight" for n, module in layers_and_modules}


ROUNDED = weights((0, "v_proj"), (0, "o_proj"), (1, "o_proj"))


def approximately(figures: Figures) -> dict[str, Any]:
    return {form: pytest.approx(both, rel=1e-4) for form, both in figures.items()}


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_both_figures_are_those_of_the_libraries(
    use_dora: bool, models: Path, lora: Callable[..., Path], llama_cpp_source: Path
) -> None:
    folder = lora(use_dora=use_dora)
    wanted = expected(models, folder, ROUNDED)
    wanted |= expected_quantized(models, folder, llama_cpp_source, ROUNDED, "Q4_K_M")
    assert wanted["16 bits"]["quantized"] < 0.01 < wanted["16 bits"]["twin"]

    for used in ("quantized", "twin"):
        told = Notes()
        request = Request(
            str(folder), ("Q4_K_M",), "x", models / used, keep_base_quantized=used == "quantized"
        )
        nearness = build(prepare(request, told), told).nearness

        assert nearness is not None
        assert not nearness.is_estimated
        assert nearness.used == used
        # The weight that was not quantized is the same in both, and is not looked at.
        assert set(nearness.weights) == ROUNDED
        assert figures(nearness) == approximately(wanted)
        said = told.about("Distance from what was trained")
        for form, both in wanted.items():
            assert f"in {form} {both['quantized']:.2%} on the quantized base" in said
            assert f"{both['twin']:.2%} on its 16-bit twin" in said


@pytest.mark.parametrize("keeps_quantized", [False, True])
def test_it_is_said_which_is_nearer_and_which_is_used(
    keeps_quantized: bool, models: Path, lora: Callable[..., Path]
) -> None:
    told, folder = Notes(), lora()

    made = merge(Request(str(folder), keep_base_quantized=keeps_quantized), models / "merged", told)

    wanted = expected(models, folder, ROUNDED)
    assert figures(made.nearness) == approximately(wanted)
    verdict = told.about("Nearer to what was trained is the quantized base")
    assert f"used is {'the quantized base' if keeps_quantized else 'its 16-bit twin'}" in verdict
    assert "does not tell which answers better" in verdict


def test_weights_of_more_rows_are_sampled(
    models: Path, lora: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    folder = lora()
    everything = adapter("llama", models / "tiny")
    shutil.copyfile(everything / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((everything / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(models / QUANTIZED)
    (folder / "adapter_config.json").write_text(json.dumps(config))

    nearness = merge(Request(str(folder)), models / "merged", Silent()).nearness

    assert nearness is not None
    assert len(nearness.weights) == 13
    wanted = expected(models, folder, nearness.weights)
    assert figures(nearness) == {
        form: pytest.approx(both, rel=0.02) for form, both in wanted.items()
    }


def test_the_quantized_weights_are_estimated_where_only_their_configuration_is_at_hand(
    models: Path, lora: Callable[..., Path]
) -> None:
    told, folder = Notes(), lora()
    (models / QUANTIZED / "model.safetensors").unlink()

    nearness = merge(Request(str(folder)), models / "merged", told).nearness

    assert nearness is not None
    assert nearness.is_estimated
    assert nearness.used == "twin"
    assert set(nearness.weights) == ROUNDED
    assert figures(nearness) == approximately(expected(models, folder, ROUNDED))
    assert "estimated, by rounding the twin's" in told.about("Distance from what was trained")


def test_without_the_twin_there_is_one_figure_and_that_is_said(
    models: Path, lora: Callable[..., Path]
) -> None:
    told, folder = Notes(), lora()
    shutil.rmtree(models / "tiny")

    nearness = merge(Request(str(folder)), models / "merged", told).nearness

    wanted = expected(models, folder, ROUNDED, ["quantized"])["16 bits"]["quantized"]
    assert figures(nearness) == {
        "16 bits": {"quantized": pytest.approx(wanted, rel=1e-4), "twin": None}
    }
    assert told.about("Its 16-bit twin is not on this machine")
    assert not any("Nearer to" in note for note in told.notes)


def test_without_the_library_the_twin_is_packaged_and_what_is_missing_is_said(
    models: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, folder, find = Notes(), lora(), importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )

    made = merge(Request(str(folder)), models / "merged", told)

    assert made.nearness is None
    assert (models / "merged" / "model.safetensors").is_file()
    said = told.about("is not measured")
    assert "pip install 'ftpack[bitsandbytes]'" in said


def test_nothing_is_said_where_no_quantized_base_is_recorded(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    told = Notes()

    made = merge(Request(str(adapter("llama"))), tmp_path / "merged", told)

    assert made.nearness is None
    assert not any("what was trained" in note for note in told.notes)


@pytest.mark.parametrize("verb", ["gguf", "merge"])
def test_the_command_line_gives_both_figures(
    verb: str, models: Path, lora: Callable[..., Path]
) -> None:
    options = ["--quant", "q8_0"] if verb == "gguf" else []

    done = ftpack(
        verb, lora(), *options, "--out", models / "out", "--json", host="127.0.0.1:1", folder=models
    )

    assert done.returncode == 0, done.stderr
    nearness = json.loads(done.stdout)["nearness"]
    assert nearness["used"] == "twin"
    assert [d["form"] for d in nearness["distances"]] == ["16 bits"] + ["Q8_0"] * (verb == "gguf")
    for each in nearness["distances"]:
        assert f"{each['quantized']:.2%} on the quantized base" in done.stderr
        assert f"{each['twin']:.2%} on its 16-bit twin" in done.stderr


def test_another_version_of_what_dequantizes_makes_the_bundle_anew(
    models: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    version, folder = importlib.metadata.version, lora()

    def prepared(keeps_quantized: bool) -> Package:
        return prepare(
            Request(
                str(folder), ("Q8_0",), "x", models / "out", keep_base_quantized=keeps_quantized
            )
        )

    before = prepared(True).fingerprint
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "9" if name == "bitsandbytes" else version(name)
    )

    kept = prepared(True)
    assert kept.fingerprint != before
    assert tool_versions(kept.inputs)["bitsandbytes"] == "9"
    # Nothing of the twin goes through it.
    assert "bitsandbytes" not in tool_versions(prepared(False).inputs)
