"""Bad input: its own message, its exit code, a next step, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import DiskSpaceError
from packager.package.prepare import prepare
from packager.verbs.build import build
from tests.requests import request_for

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `ftpack` in an empty folder, as a user does."""
    here = tmp_path / "here"
    here.mkdir()

    def run(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "packager", *map(str, args)],
            cwd=here,
            env=os.environ | {"OLLAMA_HOST": "127.0.0.1:1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str, folder: Path) -> None:
    assert result.returncode == code, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((folder / "here").rglob("*")), "nothing may be written"


def next_step(result: subprocess.CompletedProcess[str]) -> None:
    assert any(line.startswith("Next: ") for line in result.stderr.splitlines()), result.stderr


@pytest.fixture
def broken(adapter: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a good adapter with one fault."""

    def make(fault: str) -> Path:
        folder = tmp_path / fault
        shutil.copytree(adapter("llama"), folder)
        weights = folder / "adapter_model.safetensors"
        if fault == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif fault == "corrupt":
            weights.write_bytes(b"\xff" * 4096)
        elif fault == "without-weights":
            weights.unlink()
        elif fault == "pickle-with-code":
            weights.unlink()
            (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        elif fault == "without-base":
            config = json.loads((folder / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = "/mnt/gone/base"
            (folder / "adapter_config.json").write_text(json.dumps(config))
        elif fault == "no-template":
            for name in ("chat_template.jinja", "tokenizer_config.json"):
                (folder / name).unlink(missing_ok=True)
        return folder

    return make


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncated", ["adapter_model.safetensors"]),
        ("corrupt", ["adapter_model.safetensors"]),
        ("without-weights", ["adapter_model.safetensors", "no"]),
        ("pickle-with-code", ["adapter_model.bin"]),
        ("without-base", ["/mnt/gone/base", "--base"]),
    ],
)
def test_a_broken_adapter(
    fault: str, words: list[str], broken: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    result = run("gguf", broken(fault))

    refused(result, 3, *words, folder=tmp_path)
    next_step(result)


def test_a_source_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    result = run("gguf", "./not-there")

    refused(result, 3, "not-there", folder=tmp_path)
    next_step(result)


def test_a_folder_without_a_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    result = run("ollama", tmp_path / "empty", "--name", "x")

    refused(result, 3, "adapter_config.json", "config.json", folder=tmp_path)
    next_step(result)


def test_a_base_whose_shapes_do_not_fit(
    run: Run, small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    result = run("gguf", adapter("llama"), "--base", small_model("llama", hidden_size=192))

    refused(result, 3, "[16, 256]", "[16, 192]", folder=tmp_path)
    next_step(result)


def test_a_model_without_a_chat_template(
    run: Run, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model("llama"), model)
    (model / "chat_template.jinja").unlink()

    result = run("gguf", model)

    refused(result, 3, "chat template", "--template", folder=tmp_path)
    next_step(result)


def test_an_architecture_that_the_converter_does_not_know(
    run: Run, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model("llama"), model)
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["MadeUpForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))

    result = run("gguf", model)

    refused(result, 3, "MadeUpForCausalLM", version("llama-cpp-python"), folder=tmp_path)
    next_step(result)


def test_an_index_that_leaves_the_folder(
    run: Run, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model("llama"), model)
    (model / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    result = run("gguf", model)

    refused(result, 3, "../outside.safetensors", folder=tmp_path)
    next_step(result)


def test_shards_of_fsdp_that_were_not_merged(run: Run, tmp_path: Path) -> None:
    pieces = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"
    pieces.mkdir(parents=True)
    (pieces / "__0_0.distcp").touch()

    result = run("gguf", tmp_path / "checkpoint-5")

    refused(result, 3, "accelerate merge-weights", folder=tmp_path)
    next_step(result)


def test_a_link_out_of_the_folder(broken: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    folder = broken("linked")
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")

    result = run("gguf", folder)

    refused(result, 3, "chat_template.jinja", str(tmp_path / "secret"), folder=tmp_path)
    next_step(result)


@pytest.mark.parametrize("verb", ["gguf", "merge"])
def test_an_output_below_a_file(
    verb: str, run: Run, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    result = run(verb, adapter("llama"), "--out", tmp_path / "file" / "out")

    refused(result, 3, str(tmp_path / "file"), folder=tmp_path)
    next_step(result)


def test_a_home_folder_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    result = run("gguf", "~nobody-of-this-name/lora")

    refused(result, 3, "~nobody-of-this-name/lora", folder=tmp_path)
    next_step(result)


@pytest.mark.parametrize("value", ["nan", "inf", "1e400"])
def test_a_parameter_that_is_not_a_finite_number(
    value: str, run: Run, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    result = run("modelfile", adapter("llama"), "--param", f"temperature={value}")

    refused(result, 2, "temperature", value, folder=tmp_path)


def test_an_unknown_quant(run: Run, adapter: Callable[..., Path], tmp_path: Path) -> None:
    result = run("gguf", adapter("llama"), "--quant", "q5_k_x")

    refused(result, 2, "q5_k_x", "Q5_K_M", folder=tmp_path)
    next_step(result)


@pytest.mark.parametrize("name", ["my model", "-x", "a/b/c/d/e", "name:tag:tag", "../up"])
def test_a_name_that_ollama_refuses(
    name: str, run: Run, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    result = run("ollama", adapter("llama"), f"--name={name}")

    refused(result, 2, name, folder=tmp_path)
    next_step(result)


def test_a_tag_for_several_quants(run: Run, adapter: Callable[..., Path], tmp_path: Path) -> None:
    result = run(
        "ollama", adapter("llama"), "--name", "x:tag", "--quant", "q4_0", "--quant", "q8_0"
    )

    refused(result, 2, "x:tag", folder=tmp_path)
    next_step(result)


def test_a_missing_toolchain(run: Run, adapter: Callable[..., Path], tmp_path: Path) -> None:
    result = run("gguf", adapter("llama"), FTPACK_CACHE=str(tmp_path / "no-cache"))

    refused(result, 3, "converter", "ftpack doctor --install-toolchain", folder=tmp_path)


def test_a_gpu_on_a_machine_without_one(
    run: Run, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    refused(run("gguf", adapter("llama"), "--device", "cuda"), 2, "cuda", folder=tmp_path)


def test_not_enough_disk(
    small_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = prepare(request_for(small_model("llama"), out=tmp_path / "out"), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))

    with pytest.raises(DiskSpaceError, match="976"):
        build(package)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_or_inf_in_a_weight_names_the_tensor_and_leaves_no_file(
    value: float, small_model: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model("llama"), model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, model / "model.safetensors", {"format": "pt"})

    result = run("gguf", model, "--quant", "q8_0", "--out", "out")

    assert result.returncode == 3
    assert "model.layers.1.mlp.down_proj.weight" in result.stderr
    assert not list((tmp_path / "here").rglob("*"))


def test_another_models_files_are_not_overwritten(
    small_model: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "here" / "out"
    assert run("gguf", small_model("llama"), "--name", "x", "--out", "out").returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    result = run("gguf", small_model("qwen3"), "--name", "x", "--out", "out")

    assert result.returncode == 3
    assert "--force" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run("gguf", small_model("qwen3"), "--name", "x", "--out=out", "--force").returncode == 0
