"""Multimodal models: the text model and the mmproj have the bytes of the usual route."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from packager.bundle.bundle import MODELFILE, Bundle, read_bundle, verify_bundle
from packager.bundle.manifest import GgufFile, Manifest
from packager.errors import AdapterMismatchError, CorruptFileError, MissingWeightsError
from packager.files import scratch_folder
from packager.package.prepare import prepare
from packager.progress import Silent
from packager.verbs.build import build
from testing.usual_route import convert_with_llama_cpp, read_gguf
from tests.reports import Reports
from tests.requests import request_for
from tests.vision import VISION_KINDS, VisionKind, make_vision_adapter, merge_vision_with_peft

pytestmark = pytest.mark.slow

# The name, and what ftpack says of the prompt: the same exceptions as for text.
_OUR_OWN = ("general.", "tokenizer.chat_template", "tokenizer.ggml.e", "tokenizer.ggml.add_bos")


@dataclass(frozen=True)
class Outcome:
    """A build, and the warnings of preparing and building it."""

    bundle: Bundle
    reused: tuple[str, ...]
    warnings: list[str]

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def projector(self) -> GgufFile:
        assert self.manifest.projector is not None
        return self.manifest.projector


def package(
    source: Path, out: Path, quants: tuple[str, ...] = ("BF16",), *, text_only: bool = False
) -> Outcome:
    reports = Reports()
    request = request_for(source, quants, "multimodal", out, text_only=text_only)
    with scratch_folder() as scratch:
        built = build(prepare(request, scratch, reports), reports)
    return Outcome(built.bundle, built.reused, reports.warnings)


def without_our_own(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if not key.startswith(_OUR_OWN)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in VISION_KINDS),
        ("gemma3", {"use_dora": True, "bias": "all"}),
        ("qwen3_vl", {"use_dora": True}),
    ],
)
def test_both_files_equal_those_of_the_usual_route(
    kind: VisionKind,
    options: dict[str, Any],
    vision_model: Callable[[VisionKind], Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    base = vision_model(kind)
    lora = make_vision_adapter(base, tmp_path / "lora", **options)
    outcome = package(lora, tmp_path / "out")
    assert not [line for line in outcome.warnings if "left out" in line or "no place" in line]
    merged = merge_vision_with_peft(base, lora, tmp_path / "merged")
    for ours, outtype, flags in (
        (outcome.bundle.ggufs[0], "bf16", []),
        (outcome.projector, "f16", ["--mmproj"]),
    ):
        theirs = convert_with_llama_cpp(
            merged, tmp_path / f"{outtype}.gguf", outtype, llama_cpp_source, *flags
        )
        expected, expected_tensors = read_gguf(theirs, llama_cpp_source)
        values, tensors = read_gguf(outcome.bundle.path(ours), llama_cpp_source)
        assert tensors == expected_tensors
        assert without_our_own(values) == without_our_own(expected)
        assert values["general.type"] == expected["general.type"]


def test_the_adapter_is_merged_into_the_mmproj(
    vision_model: Callable[[VisionKind], Path], llama_cpp_source: Path, tmp_path: Path
) -> None:
    base = vision_model("qwen2_5_vl")
    lora = make_vision_adapter(base, tmp_path / "lora")
    tensors = []
    for source, out in ((base, tmp_path / "base-gguf"), (lora, tmp_path / "lora-gguf")):
        outcome = package(source, out, ("Q4_K_M", "Q8_0"))
        assert [file.quant for file in outcome.manifest.ggufs] == ["Q4_K_M", "Q8_0"]
        modelfile = (out / MODELFILE).read_text()
        froms = [line for line in modelfile.splitlines() if line.startswith("FROM")]
        assert froms == ["FROM ./multimodal-Q4_K_M.gguf", "FROM ./mmproj-multimodal-F16.gguf"]
        assert read_bundle(out) == outcome.bundle
        verify_bundle(read_bundle(out), Silent())
        tensors.append(read_gguf(outcome.bundle.path(outcome.projector), llama_cpp_source)[1])
    changed = {name for name in tensors[0] if tensors[0][name] != tensors[1][name]}
    assert any(".attn_" in name for name in changed)
    assert any("ffn" in name for name in changed)


def test_text_only_makes_the_same_text_model_and_warns_of_the_rest(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    base = vision_model("gemma3")
    lora = make_vision_adapter(base, tmp_path / "lora")
    whole = package(lora, tmp_path / "whole")
    text = package(lora, tmp_path / "text", text_only=True)
    assert text.manifest.projector is None
    assert text.manifest.ggufs == whole.manifest.ggufs
    assert "mmproj" not in (tmp_path / "text" / MODELFILE).read_text()
    assert any(line.startswith("Text only") for line in text.warnings)
    left_out = [name for name in tuned_modules(lora) if "language_model" not in name]
    assert left_out
    # The vision model's linear layers have a weight and a bias each.
    facts = ("--text-only", f" {2 * len(left_out)} tensors", "adapter")
    assert any(all(fact in line for fact in facts) for line in text.warnings), text.warnings


def tuned_modules(lora: Path) -> set[str]:
    """The base's modules that an adapter's tensors belong to."""
    tensors = load_file(lora / "adapter_model.safetensors")
    return {name.rpartition(".lora_")[0] for name in tensors}


def test_an_adapter_that_would_be_in_no_file_is_refused(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    base = vision_model("gemma3")
    lora = make_vision_adapter(base, tmp_path / "lora", r".*vision_tower.*\.q_proj")
    with pytest.raises(AdapterMismatchError, match=r"GGUF.*q_proj") as caught:
        package(lora, tmp_path / "out", text_only=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    outcome = package(lora, tmp_path / "out")
    base_outcome = package(base, tmp_path / "base")
    assert outcome.manifest.ggufs == base_outcome.manifest.ggufs
    assert outcome.manifest.projector != base_outcome.manifest.projector


def test_a_missing_preprocessor_is_an_error_before_anything_is_written(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("qwen3_vl"), tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"preprocessor_config\.json") as caught:
        package(model, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "--text-only" in caught.value.next_step
    assert not (tmp_path / "out").exists()
    assert package(model, tmp_path / "out", text_only=True).manifest.projector is None


@pytest.mark.parametrize("mean", [[], "x", {"a": 1}, [0.5]])
def test_colours_that_are_not_three_numbers_are_refused(
    mean: object, vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("smolvlm"), tmp_path / "model")
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": mean}))

    with pytest.raises(CorruptFileError, match=r"preprocessor_config\.json: `image_mean`"):
        prepare(request_for(model), tmp_path)


def test_a_model_without_its_text_model_is_refused(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("smolvlm"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    vision = {name: tensor for name, tensor in tensors.items() if "vision" in name}
    save_file(vision, model / "model.safetensors", {"format": "pt"})

    with pytest.raises(MissingWeightsError, match="text model"):
        prepare(request_for(model), tmp_path)


def test_a_warning_says_if_the_converter_makes_only_the_text_model_of_an_architecture(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    from importlib.metadata import version

    model = shutil.copytree(vision_model("smolvlm"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["VLlama3ForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    outcome = package(model, tmp_path / "out")
    assert outcome.manifest.projector is None
    facts = (version("llama-cpp-python"), "text model", "left out")
    assert any(all(fact in line for fact in facts) for line in outcome.warnings)


@pytest.mark.parametrize("name", ["mmproj-multimodal-F16.gguf", "multimodal-BF16.gguf"])
def test_a_rerun_makes_only_the_missing_file(
    name: str, vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    lora = make_vision_adapter(vision_model("qwen3_vl"), tmp_path / "lora")
    first = package(lora, tmp_path / "out")
    assert not first.reused
    (tmp_path / "out" / name).unlink()
    second = package(lora, tmp_path / "out")
    assert second.manifest == first.manifest
    assert set(second.reused) == {file.name for file in first.manifest.files} - {name}
    assert read_bundle(tmp_path / "out").manifest == first.manifest
    verify_bundle(read_bundle(tmp_path / "out"), Silent())
