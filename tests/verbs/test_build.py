"""A build's manifest names every adapter, and its bytes do not depend on where it was merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.bundle.bundle import Bundle, read_bundle
from packager.package.prepare import prepare
from packager.package.provenance import fingerprint
from packager.package.request import Request
from packager.verbs.build import build
from packager.verbs.merge import merge
from testing.usual_route import read_gguf
from tests.requests import request_for


def test_the_manifest_names_every_adapter_and_how_they_were_combined(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    first = adapter("llama")
    second = shutil.copytree(first, tmp_path / "second")
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 5}))

    def request(out: str, *sources: Path, weights: tuple[float, ...] = ()) -> Request:
        source, *adapters = sources
        return request_for(
            source, ("Q8_0",), "m", tmp_path / out,
            adapters=adapters, combine="cat" if weights else None, weights=weights,
        )  # fmt: skip

    in_turn = prepare(request("turn", first, second), tmp_path)
    combined = prepare(request("combined", first, second, weights=(1.0, 0.5)), tmp_path)
    swapped = prepare(request("turn", second, first), tmp_path)
    build(in_turn)
    build(combined)

    manifests = [read_bundle(tmp_path / name).manifest for name in ("turn", "combined")]
    assert [[item.name for item in manifest.adapters] for manifest in manifests] == 2 * [
        [first.name, "second"]
    ]
    assert [manifest.combination for manifest in manifests] == [None, "cat, weights 1, 0.5"]
    assert manifests[0].ggufs[0].sha256 != manifests[1].ggufs[0].sha256
    assert len({fingerprint(package) for package in (in_turn, combined, swapped)}) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_bundle_made_on_a_gpu_has_the_bytes_that_the_cpu_makes_of_the_same_merged_tensors(
    kind: str,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    lora, quants = adapter(kind), ("Q4_K_M", "Q8_0", "F16")
    on_gpu = request_for(lora, quants, "m", tmp_path / "gpu", small_model(kind), device="cuda")
    merged = merge(on_gpu, tmp_path / "merged").saved.folder
    on_cpu = request_for(merged, quants, "m", tmp_path / "cpu", device="cpu")

    gpu_bundle, cpu_bundle = (build_from(request, tmp_path) for request in (on_gpu, on_cpu))

    for ours, theirs in zip(gpu_bundle.ggufs, cpu_bundle.ggufs, strict=True):
        _, expected = read_gguf(cpu_bundle.path(theirs), llama_cpp_source)
        _, tensors = read_gguf(gpu_bundle.path(ours), llama_cpp_source)
        assert tensors == expected, ours.quant


def build_from(request: Request, scratch: Path) -> Bundle:
    return build(prepare(request, scratch)).bundle
