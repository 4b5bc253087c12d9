"""How near the merge is to what was trained: on the quantized base, and on its 16-bit twin.

Expected figures come from bitsandbytes, PEFT and llama.cpp, by whole weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from packager.pipeline.build import build
from packager.pipeline.merging import merge
from packager.pipeline.nearness import Nearness
from packager.pipeline.prepare import prepare
from packager.plan import Request
from packager.progress import Silent
from tests.command import ftpack
from tests.usual_route import (
    convert_with_llama_cpp,
    merge_with_peft,
    quantize_with_llama_cpp,
    read_weights,
)

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

QUANTIZED = "tiny-unsloth-bnb-4bit"
# Their rows are few enough that each is compared; a GGUF has them as they are.
TARGETS = ["v_proj", "o_proj"]
GGUF_NAMES = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
# What Unsloth's dynamic quantization keeps in 16 bits, beside the head.
SKIPPED = "model.layers.1.self_attn.v_proj"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

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


def expected(
    models: Path, adapter: Path, llama_cpp: Path, names: Iterable[str], quant: str
) -> dict[str, dict[str, float]]:
    """Both distances by the usual route, in 16 bits and in a quant."""
    trained = in_fp32(models / "dequantized", adapter)
    found: dict[str, dict[str, float]] = {"16 bits": {}, quant: {}}
    for choice, base in (("quantized", "dequantized"), ("twin", "tiny")):
        folder = merge_with_peft(models / base, adapter, models / f"usual-{choice}")
        merged = {k: v.float().numpy() for k, v in load_file(folder / "model.safetensors").items()}
        wide = convert_with_llama_cpp(folder, models / "wide.gguf", "bf16", llama_cpp)
        gguf = quantize_with_llama_cpp(wide, models / f"{choice}.gguf", quant)
        in_gguf = read_weights(gguf, llama_cpp)
        quantized = {name: in_gguf[gguf_name(name)] for name in names}
        found["16 bits"][choice] = distance(merged, trained, names)
        found[quant][choice] = distance(quantized, trained, names)
    return found


def gguf_name(name: str) -> str:
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.weight"


def figures(nearness: Nearness | None) -> dict[str, dict[str, float | None]]:
    assert nearness is not None
    return {d.form: {"quantized": d.quantized, "twin": d.twin} for d in nearness.distances}


def weights(*layers_and_modules: tuple[int, str]) -> set[str]:
    return {f"model.layers.{n}.self_attn.{module}.weight" for n, module in layers_and_modules}


@pytest.mark.parametrize("keeps_quantized", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_both_figures_are_those_of_the_libraries(
    use_dora: bool,
    keeps_quantized: bool,
    models: Path,
    lora: Callable[..., Path],
    llama_cpp_source: Path,
) -> None:
    told, folder = Notes(), lora(use_dora=use_dora)
    request = Request(
        str(folder), ("Q4_K_M",), "x", models / "out", keep_base_quantized=keeps_quantized
    )

    nearness = build(prepare(request, told), told).nearness

    assert nearness is not None
    assert not nearness.is_estimated
    assert nearness.used == ("quantized" if keeps_quantized else "twin")
    # The weight that was not quantized is the same in both.
    assert set(nearness.weights) == weights((0, "v_proj"), (0, "o_proj"), (1, "o_proj"))
    wanted = expected(models, folder, llama_cpp_source, nearness.weights, "Q4_K_M")
    assert figures(nearness) == {
        form: pytest.approx(both, rel=1e-4) for form, both in wanted.items()
    }
    assert wanted["16 bits"]["quantized"] < 0.01 < wanted["16 bits"]["twin"]
    said = told.about("Distance from what was trained")
    for form, both in wanted.items():
        assert f"in {form} {both['quantized']:.2%} on the quantized base" in said
        assert f"{both['twin']:.2%} on its 16-bit twin" in said
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
    trained = in_fp32(models / "dequantized", folder)
    kept = merge_with_peft(models / "dequantized", folder, models / "usual-quantized")
    twin = load_file(models / "merged" / "model.safetensors")
    wanted = {
        "quantized": load_file(kept / "model.safetensors"),
        "twin": twin,
    }
    assert figures(nearness) == {
        "16 bits": {
            choice: pytest.approx(
                distance({k: v.float() for k, v in made.items()}, trained, nearness.weights),
                rel=0.02,
            )
            for choice, made in wanted.items()
        }
    }


def test_the_quantized_weights_are_estimated_where_only_their_configuration_is_at_hand(
    models: Path, lora: Callable[..., Path], llama_cpp_source: Path
) -> None:
    told, folder = Notes(), lora()
    (models / QUANTIZED / "model.safetensors").unlink()

    nearness = build(
        prepare(Request(str(folder), ("Q8_0",), "x", models / "out"), told), told
    ).nearness

    assert nearness is not None
    assert nearness.is_estimated
    assert nearness.used == "twin"
    assert set(nearness.weights) == weights((0, "v_proj"), (0, "o_proj"), (1, "o_proj"))
    wanted = expected(models, folder, llama_cpp_source, nearness.weights, "Q8_0")
    assert figures(nearness) == {
        form: pytest.approx(both, rel=1e-4) for form, both in wanted.items()
    }
    assert "estimated, by rounding the twin's" in told.about("Distance from what was trained")


def test_without_the_twin_there_is_one_figure_and_that_is_said(
    models: Path, lora: Callable[..., Path], llama_cpp_source: Path
) -> None:
    told, folder = Notes(), lora()
    wanted = expected(
        models, folder, llama_cpp_source, weights((0, "v_proj"), (0, "o_proj"), (1, "o_proj")),
        "Q8_0",
    )  # fmt: skip
    shutil.rmtree(models / "tiny")

    bundle = build(prepare(Request(str(folder), ("Q8_0",), "x", models / "out"), told), told)

    assert figures(bundle.nearness) == {
        form: {"quantized": pytest.approx(both["quantized"], rel=1e-4), "twin": None}
        for form, both in wanted.items()
    }
    assert told.about("Its 16-bit twin is not on this machine")
    assert not any("Nearer to" in note for note in told.notes)


def test_without_the_library_the_twin_is_packaged_and_what_is_missing_is_said(
    models: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    told, folder, find = Notes(), lora(), importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )

    bundle = build(prepare(Request(str(folder), ("Q8_0",), "x", models / "out"), told), told)

    assert bundle.nearness is None
    assert bundle.asked_for
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
