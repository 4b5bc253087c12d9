"""Models that see: the text model and the mmproj are those of the usual route, and run together."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ollama
import pytest
from safetensors.torch import load_file, save_file

from packager.bundle.bundle import verify_bundle
from packager.errors import AdapterMismatchError, CorruptFileError, MissingWeightsError
from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.verbs.build import Bundle, build
from testing.usual_route import convert_with_llama_cpp, read_gguf
from tests.command import ftpack
from tests.daemon import OllamaDaemon, find_ollama
from tests.reports import Reports
from tests.vision import (
    VISION_KINDS,
    VisionKind,
    make_vision_adapter,
    make_vision_model,
    merge_vision_with_peft,
    png,
)

pytestmark = pytest.mark.slow

# The name, and what ftpack says of the prompt: the same exceptions as for text.
_OUR_OWN = ("general.", "tokenizer.chat_template", "tokenizer.ggml.e", "tokenizer.ggml.add_bos")


@pytest.fixture(scope="module")
def vision_model(
    llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[VisionKind], Path]:
    made: dict[VisionKind, Path] = {}

    def make(kind: VisionKind) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("vision") / kind
            made[kind] = make_vision_model(kind, folder, llama_cpp_source)
        return made[kind]

    return make


def package(source: Path, out: Path, **options: Any) -> tuple[Bundle, list[str]]:
    reports = Reports()
    options.setdefault("quants", ("BF16",))
    bundle = build(
        prepare(Request(str(source), name="seeing", out=out, **options), reports), reports
    )
    return bundle, reports.warnings


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
def test_both_files_are_those_of_the_usual_route(
    kind: VisionKind,
    options: dict[str, Any],
    vision_model: Callable[[VisionKind], Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    base = vision_model(kind)
    lora = make_vision_adapter(base, tmp_path / "lora", **options)
    bundle, warnings = package(lora, tmp_path / "out")
    assert not [line for line in warnings if "left out" in line or "no place" in line]
    assert bundle.manifest.projector is not None
    merged = merge_vision_with_peft(base, lora, tmp_path / "merged")
    for ours, wanted in (
        (bundle.asked_for[0].name, ("bf16", [])),
        (bundle.manifest.projector.name, ("f16", ["--mmproj"])),
    ):
        outtype, more = wanted
        theirs = convert_with_llama_cpp(
            merged, tmp_path / f"{outtype}.gguf", outtype, llama_cpp_source, *more
        )
        expected, expected_tensors = read_gguf(theirs, llama_cpp_source)
        values, tensors = read_gguf(bundle.folder / ours, llama_cpp_source)
        assert tensors == expected_tensors
        assert without_our_own(values) == without_our_own(expected)
        assert values["general.type"] == expected["general.type"]


def test_the_adapter_is_in_the_mmproj(
    vision_model: Callable[[VisionKind], Path], llama_cpp_source: Path, tmp_path: Path
) -> None:
    base = vision_model("qwen2_5_vl")
    lora = make_vision_adapter(base, tmp_path / "lora")
    tensors = []
    for source, out in ((base, tmp_path / "base-gguf"), (lora, tmp_path / "lora-gguf")):
        bundle, _ = package(source, out, quants=("Q4_K_M", "Q8_0"))
        assert [file.quant for file in bundle.manifest.ggufs] == ["Q4_K_M", "Q8_0"]
        assert bundle.manifest.projector is not None
        modelfile = (out / "Modelfile").read_text()
        froms = [line for line in modelfile.splitlines() if line.startswith("FROM")]
        assert froms == ["FROM ./seeing-Q4_K_M.gguf", "FROM ./mmproj-seeing-F16.gguf"]
        assert verify_bundle(out) == bundle.manifest
        tensors.append(read_gguf(out / bundle.manifest.projector.name, llama_cpp_source)[1])
    changed = {name for name in tensors[0] if tensors[0][name] != tensors[1][name]}
    assert any(".attn_" in name for name in changed)
    assert any("ffn" in name for name in changed)


def test_the_modelfile_of_a_source_names_both(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    done = ftpack(
        "modelfile", vision_model("gemma3"), "--from", "./a.gguf", "--from", "./mmproj-a.gguf",
        host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    froms = [line for line in done.stdout.splitlines() if line.startswith("FROM")]
    assert froms == ["FROM ./a.gguf", "FROM ./mmproj-a.gguf"]


def test_text_only_is_said_and_makes_the_same_text_model(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    base = vision_model("gemma3")
    lora = make_vision_adapter(base, tmp_path / "lora")
    whole, _ = package(lora, tmp_path / "whole")
    text, warnings = package(lora, tmp_path / "text", text_only=True)
    assert text.manifest.projector is None
    assert text.manifest.ggufs == whole.manifest.ggufs
    assert "mmproj" not in (tmp_path / "text" / "Modelfile").read_text()
    assert any(line.startswith("Text only") and "tensors: " in line for line in warnings)
    assert any("--text-only" in line and "adapter" in line for line in warnings)


def test_what_would_be_in_no_file_is_refused(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    base = vision_model("gemma3")
    lora = make_vision_adapter(base, tmp_path / "lora", r".*vision_tower.*\.q_proj")
    with pytest.raises(AdapterMismatchError, match=r"would be in no GGUF.*q_proj") as caught:
        package(lora, tmp_path / "out", text_only=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    bundle, _ = package(lora, tmp_path / "out")
    base_bundle, _ = package(base, tmp_path / "base")
    assert bundle.manifest.ggufs == base_bundle.manifest.ggufs
    assert bundle.manifest.projector != base_bundle.manifest.projector


def test_without_the_preprocessor_nothing_is_begun(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("qwen3_vl"), tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"preprocessor_config\.json") as caught:
        package(model, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "--text-only" in caught.value.next_step
    assert not (tmp_path / "out").exists()
    assert package(model, tmp_path / "out", text_only=True)[0].manifest.projector is None


@pytest.mark.parametrize("mean", [[], "x", {"a": 1}, [0.5]])
def test_colours_that_are_no_numbers(
    mean: object, vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("smolvlm"), tmp_path / "model")
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": mean}))

    with pytest.raises(CorruptFileError, match=r"preprocessor_config\.json: `image_mean`"):
        prepare(Request(str(model)))


def test_a_checkpoint_without_its_text_model(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("smolvlm"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    seeing = {name: tensor for name, tensor in tensors.items() if "vision" in name}
    save_file(seeing, model / "model.safetensors", {"format": "pt"})

    with pytest.raises(MissingWeightsError, match="text model"):
        prepare(Request(str(model)))


def test_an_architecture_without_a_projector_is_packaged_as_text_and_that_is_said(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(vision_model("smolvlm"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["VLlama3ForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    bundle, warnings = package(model, tmp_path / "out")
    assert bundle.manifest.projector is None
    assert any("converter" in line and "text model" in line for line in warnings)


@pytest.mark.parametrize("name", ["mmproj-seeing-F16.gguf", "seeing-BF16.gguf"])
def test_what_is_missing_is_made_again_and_nothing_else(
    name: str, vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    lora = make_vision_adapter(vision_model("qwen3_vl"), tmp_path / "lora")
    first, _ = package(lora, tmp_path / "out")
    assert not first.reused
    (tmp_path / "out" / name).unlink()
    second, _ = package(lora, tmp_path / "out")
    assert second.manifest == first.manifest
    assert set(second.reused) == {file.name for file in first.manifest.files} - {name}
    assert verify_bundle(tmp_path / "out") == first.manifest


def test_the_plan_counts_both_files(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    request = Request(str(vision_model("qwen3_vl")), quants=("Q8_0",), name="seeing")
    whole, text = prepare(request).plan, prepare(replace(request, text_only=True)).plan
    assert whole.projector is not None
    assert text.projector is None
    assert whole.write_bytes == text.write_bytes + whole.projector.size_bytes
    memory = whole.quants[0].run_memory_bytes - text.quants[0].run_memory_bytes
    assert memory == whole.projector.size_bytes
    assert whole.parameters > text.parameters


def test_a_model_in_ollama_sees(
    vision_model: Callable[[VisionKind], Path], ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    client = ollama.Client(ollama_daemon.host)
    lora = make_vision_adapter(vision_model("qwen2_5_vl"), tmp_path / "lora")
    done = ftpack(
        "ollama", lora, "--quant", "q8_0", "--quant", "q4_k_m", "--name", "seeing",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compared is text" in " ".join(done.stderr.split())

    def tokens(model: str, **images: Any) -> int:
        reply = client.chat(
            model=model,
            messages=[{"role": "user", "content": "What is it?", **images}],
            options={"num_predict": 1, "temperature": 0},
        )
        assert reply.prompt_eval_count is not None
        return reply.prompt_eval_count

    for model in ("seeing:q8_0", "seeing:q4_k_m"):
        assert "vision" in client.show(model).capabilities
        assert tokens(model, images=[png(112, 112)]) >= tokens(model) + 16
    done = ftpack(
        "register", tmp_path / "seeing-gguf", "--name", "again", "--quant", "q8_0",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [str(find_ollama()), "create", "byhand", "-f", "Modelfile"],
        cwd=tmp_path / "seeing-gguf",
        env={"OLLAMA_HOST": ollama_daemon.host, "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    for model in ("again", "byhand"):
        assert tokens(model, images=[png(112, 112)]) >= tokens(model) + 16
