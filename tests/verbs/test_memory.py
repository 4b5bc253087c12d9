"""A build holds a few tensors at once, whatever the model's size."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.measure import measure
from bench.model import Adapter, Shape, make_inputs
from packager.gguf import write
from packager.gguf.convert import Conversion, GgufTensor
from packager.model.checkpoint import FolderCheckpoint
from packager.package.prepare import prepare
from packager.verbs.build import build
from testing.vocabularies import Kind
from tests.requests import request_for


@pytest.mark.slow
def test_no_more_than_a_few_tensors_are_alive_at_once(
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model("llama", layers=8)
    lora = adapter("llama", model)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    load = FolderCheckpoint.load

    def watched(self: FolderCheckpoint, name: str) -> torch.Tensor:
        nonlocal most
        tensor = load(self, name)
        alive.append(weakref.ref(tensor))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(FolderCheckpoint, "load", watched)
    # Tensors this small would all be read ahead of writing.
    monkeypatch.setattr(write, "AHEAD_ELEMENTS", 0)

    package = prepare(request_for(lora, ("Q4_0",), "x", tmp_path / "out", model), tmp_path)
    assert not alive, "nothing is read before the work starts"
    build(package)

    assert len(alive) > 50
    assert most <= 3


@pytest.mark.slow
def test_a_stack_of_experts_is_read_expert_by_expert(
    small_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(small_model("qwen3moe"), ("Q8_0",), "x", tmp_path / "out")
    package = prepare(request, tmp_path)
    sizes: dict[str, list[int]] = {}
    blocks = Conversion.blocks

    def watched(self: Conversion, tensor: GgufTensor, max_elements: int) -> Iterator[torch.Tensor]:
        for block in blocks(self, tensor, max_elements):
            sizes.setdefault(tensor.name, []).append(block.numel())
            yield block

    monkeypatch.setattr(Conversion, "blocks", watched)

    build(package)

    # Eight experts of 256 x 256 (`model_config` in tests/models.py).
    assert sizes["blk.0.ffn_gate_exps.weight"] == [256 * 256] * 8


@pytest.mark.slow
def test_every_tensor_is_read_once_for_several_quants(
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from packager.model.tensor_file import SafetensorsFile

    read = 0
    original = SafetensorsFile._read

    def counted(self: SafetensorsFile, *arguments: object) -> torch.Tensor:
        nonlocal read
        tensor = original(self, *arguments)  # type: ignore[arg-type]
        read += tensor.numel() * tensor.element_size()
        return tensor

    monkeypatch.setattr(SafetensorsFile, "_read", counted)
    lora = adapter("llama")
    quants = ("Q4_K_M", "Q8_0", "F16")

    build(prepare(request_for(lora, quants, "x", tmp_path / "out"), tmp_path))

    files = [small_model("llama") / "model.safetensors", lora / "adapter_model.safetensors"]
    expected = sum(
        info.size_bytes for file in files for info in SafetensorsFile(file).tensors.values()
    )
    assert read == expected


_MIXTURE = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 768,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("qwen3moe", Adapter("lora", 64)),
        ("qwen3", Adapter("lora", 64)),
        ("qwen3", Adapter("loha", 16)),
        ("qwen3", Adapter("dora", 16)),
    ],
    ids=str,
)
def test_packaging_uses_no_more_memory_than_estimated(
    kind: Kind, adapter: Adapter, llama_cpp_source: Path, tmp_path: Path
) -> None:
    moe = [key for key in _MIXTURE if "expert" in key or "moe" in key]
    sizes = {key: n for key, n in _MIXTURE.items() if kind == "qwen3moe" or key not in moe}
    shape = Shape(kind, "one with large modules", sizes)
    base, tuned, _ = make_inputs(shape, tmp_path / "model", llama_cpp_source, adapter)
    command = [sys.executable, "-m", "packager", "gguf", tuned, "--base", base, "--device", "cpu"]
    command += ["--quant", "q8_0", "--name", "x", "--out", tmp_path / "out"]
    dry_run = subprocess.run(
        [*command, "--dry-run", "--json"], capture_output=True, text=True, check=True
    )

    cost = measure([*command, "--quiet"], tmp_path / "log")

    assert cost.peak_tree_bytes <= json.loads(dry_run.stdout)["memory_bytes"]
