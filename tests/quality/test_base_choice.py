"""The distance of a merge from the trained model, on a quantized base and on its 16-bit original.

Expected figures come from bitsandbytes, PEFT and llama.cpp, and from whole weights.
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
from safetensors.torch import load_file

from packager.files import scratch_folder
from packager.gguf.quants import QUANTS
from packager.package.prepare import open_inputs, prepare
from packager.package.provenance import fingerprint, tool_versions
from packager.package.request import BuildOptions, Request
from packager.progress import Silent
from packager.quality.base_choice import BaseChoice
from packager.source.source_options import SourceOptions
from packager.verbs.build import build
from packager.verbs.merge import merge
from testing.usual_route import (
    convert_with_llama_cpp,
    merge_with_peft,
    quantize_with_llama_cpp,
    read_weights,
)
from tests.command import ftpack
from tests.reports import Reports

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

QUANTIZED = "tiny-unsloth-bnb-4bit"
# They have so few rows that every row is compared; the converter does not change them.
TARGETS = ["v_proj", "o_proj"]
GGUF_NAMES = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
# Unsloth's dynamic quantization keeps this in 16 bits, besides the head.
SKIPPED = "model.layers.1.self_attn.v_proj"


class Notes(Reports):
    def about(self, text: str) -> str:
        (note,) = [note for note in self.notes if text in note]
        return note


def request(adapter: Path, *, keep_quantized: bool = False, **build: Any) -> Request:
    source = SourceOptions(str(adapter), keep_base_quantized=keep_quantized)
    return Request(source=source, build=BuildOptions(**build), name="x")


def quantize(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Save a base as bitsandbytes packs it; gives the weights that training reads."""
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

    original = tmp_path / "tiny"
    shutil.copytree(small_model("llama"), original)
    weights = quantize(original, tmp_path / QUANTIZED)
    dequantized = tmp_path / "dequantized"
    shutil.copytree(original, dequantized)
    save_file({k: v.contiguous() for k, v in weights.items()}, dequantized / "model.safetensors",
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
    """PEFT's merge in fp32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    return {name: tensor.numpy() for name, tensor in merged.items()}


def distance(merged: dict[str, Any], trained: dict[str, Any], names: Iterable[str]) -> float:
    names = list(names)
    error = sum(np.square(np.float64(merged[name]) - trained[name]).sum() for name in names)
    return float(np.sqrt(error / sum(np.square(np.float64(trained[n])).sum() for n in names)))


Figures = dict[str, dict[str, float]]


def expected(
    models: Path, adapter: Path, names: Iterable[str], bases: Iterable[str] = ("quantized", "twin")
) -> Figures:
    """The distances in 16 bits, by PEFT's own merges, which stay in `models`."""
    trained = in_fp32(models / "dequantized", adapter)
    figures = {}
    for base in bases:
        folder = models / ("tiny" if base == "twin" else "dequantized")
        usual = merge_with_peft(folder, adapter, models / f"usual-{base}")
        merged = load_file(usual / "model.safetensors")
        figures[base] = distance({k: v.float() for k, v in merged.items()}, trained, names)
    return {"16 bits": figures}


def expected_quantized(
    models: Path, adapter: Path, llama_cpp: Path, names: Iterable[str], quant: str
) -> Figures:
    """The distances in a quant, by llama.cpp's converter and quantizer."""
    trained = in_fp32(models / "dequantized", adapter)
    figures = {}
    for base in ("quantized", "twin"):
        wide = models / "wide.gguf"
        convert_with_llama_cpp(models / f"usual-{base}", wide, "bf16", llama_cpp)
        gguf = quantize_with_llama_cpp(wide, models / f"{base}.gguf", quant)
        in_gguf = read_weights(gguf, llama_cpp)
        figures[base] = distance({name: in_gguf[gguf_name(name)] for name in names}, trained, names)
    return {quant: figures}


def gguf_name(name: str) -> str:
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.weight"


def figures_of(choice: BaseChoice | None) -> dict[str, dict[str, float | None]]:
    assert choice is not None
    return {d.form: {"quantized": d.quantized, "twin": d.twin} for d in choice.distances}


def weights(*layers_and_modules: tuple[int, str]) -> set[str]:
    return {f"model.layers.{n}.self_attn.{module}.weight" for n, module in layers_and_modules}


ROUNDED = weights((0, "v_proj"), (0, "o_proj"), (1, "o_proj"))


def approximately(figures: Figures) -> dict[str, Any]:
    return {form: pytest.approx(both, rel=1e-4) for form, both in figures.items()}


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_both_figures_equal_those_of_the_libraries(
    use_dora: bool, models: Path, lora: Callable[..., Path], llama_cpp_source: Path
) -> None:
    folder = lora(use_dora=use_dora)
    wanted = expected(models, folder, ROUNDED)
    wanted |= expected_quantized(models, folder, llama_cpp_source, ROUNDED, "Q4_K_M")
    assert wanted["16 bits"]["quantized"] < 0.01 < wanted["16 bits"]["twin"]

    for used in ("quantized", "twin"):
        progress = Notes()
        wanted_files = request(
            folder,
            keep_quantized=used == "quantized",
            quants=(QUANTS["Q4_K_M"],),
            out=models / used,
        )
        with scratch_folder() as scratch:
            choice = build(prepare(wanted_files, scratch, progress), progress).base_choice

        assert choice is not None
        assert not choice.is_estimated
        assert choice.used == used
        # The weight that was not quantized is the same in both, and is not compared.
        assert set(choice.weights) == ROUNDED
        assert figures_of(choice) == approximately(wanted)
        note = progress.about("Distance from the trained model")
        for form, both in wanted.items():
            assert f"in {form} {both['quantized']:.2%} on the quantized base" in note
            assert f"{both['twin']:.2%} on its 16-bit original" in note


@pytest.mark.parametrize("keeps_quantized", [False, True])
def test_the_report_names_the_nearer_base_and_the_one_in_use(
    keeps_quantized: bool, models: Path, lora: Callable[..., Path]
) -> None:
    progress, folder = Notes(), lora()

    choice = merge(
        request(folder, keep_quantized=keeps_quantized), models / "merged", progress
    ).base_choice

    wanted = expected(models, folder, ROUNDED)
    assert figures_of(choice) == approximately(wanted)
    verdict = progress.about("Nearer to the trained model is the quantized base")
    used = "the quantized base" if keeps_quantized else "its 16-bit original"
    assert f"uses {used}" in verdict


def test_weights_of_more_rows_are_sampled(
    models: Path, lora: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    folder = lora()
    everything = adapter("llama", models / "tiny")
    shutil.copyfile(everything / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((everything / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(models / QUANTIZED)
    (folder / "adapter_config.json").write_text(json.dumps(config))

    choice = merge(request(folder), models / "merged", Silent()).base_choice

    assert choice is not None
    assert len(choice.weights) == 13
    wanted = expected(models, folder, choice.weights)
    assert figures_of(choice) == {
        form: pytest.approx(both, rel=0.02) for form, both in wanted.items()
    }


def test_the_quantized_weights_are_estimated_from_their_configuration_alone(
    models: Path, lora: Callable[..., Path]
) -> None:
    progress, folder = Notes(), lora()
    (models / QUANTIZED / "model.safetensors").unlink()

    choice = merge(request(folder), models / "merged", progress).base_choice

    assert choice is not None
    assert choice.is_estimated
    assert choice.used == "twin"
    assert set(choice.weights) == ROUNDED
    assert figures_of(choice) == approximately(expected(models, folder, ROUNDED))
    assert "estimated" in progress.about("Distance from the trained model")


def test_without_the_16_bit_original_there_is_one_figure(
    models: Path, lora: Callable[..., Path]
) -> None:
    progress, folder = Notes(), lora()
    shutil.rmtree(models / "tiny")

    choice = merge(request(folder), models / "merged", progress).base_choice

    wanted = expected(models, folder, ROUNDED, ["quantized"])["16 bits"]["quantized"]
    assert figures_of(choice) == {
        "16 bits": {"quantized": pytest.approx(wanted, rel=1e-4), "twin": None}
    }
    assert progress.about("16-bit original is not on this machine")
    assert not any("Nearer to" in note for note in progress.notes)


def test_without_the_library_the_16_bit_original_is_used_and_a_note_names_the_library(
    models: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, folder, find = Notes(), lora(), importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )

    choice = merge(request(folder), models / "merged", progress).base_choice

    assert choice is None
    assert (models / "merged" / "model.safetensors").is_file()
    note = progress.about("is not measured")
    assert "pip install 'ftpack[bitsandbytes]'" in note


def test_there_is_no_report_without_a_quantized_base(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    progress = Notes()

    choice = merge(request(adapter("llama")), tmp_path / "merged", progress).base_choice

    assert choice is None
    assert not any("the trained model" in note for note in progress.notes)


@pytest.mark.parametrize("verb", ["gguf", "merge"])
def test_the_command_line_gives_both_figures(
    verb: str, models: Path, lora: Callable[..., Path]
) -> None:
    options = ["--quant", "q8_0"] if verb == "gguf" else []

    done = ftpack(
        verb, lora(), *options, "--out", models / "out", "--json", host="127.0.0.1:1", folder=models
    )

    assert done.returncode == 0, done.stderr
    choice = json.loads(done.stdout)["base_choice"]
    assert choice["used"] == "twin"
    assert [d["form"] for d in choice["distances"]] == ["16 bits"] + ["Q8_0"] * (verb == "gguf")
    for each in choice["distances"]:
        assert f"{each['quantized']:.2%} on the quantized base" in done.stderr
        assert f"{each['twin']:.2%} on its 16-bit original" in done.stderr


def test_another_version_of_the_dequantizing_library_changes_the_fingerprint(
    models: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    version, folder = importlib.metadata.version, lora()

    def fingerprint_of(keep_quantized: bool) -> str:
        wanted = request(
            folder, keep_quantized=keep_quantized, quants=(QUANTS["Q8_0"],), out=models / "out"
        )
        with scratch_folder() as scratch:
            return fingerprint(prepare(wanted, scratch, Silent()))

    def libraries(keep_quantized: bool) -> dict[str, str]:
        return tool_versions(open_inputs(request(folder, keep_quantized=keep_quantized), Silent()))

    before = fingerprint_of(True)
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "9" if name == "bitsandbytes" else version(name)
    )

    assert fingerprint_of(True) != before
    assert libraries(True)["bitsandbytes"] == "9"
    # The library does not dequantize the 16-bit original.
    assert "bitsandbytes" not in libraries(False)
