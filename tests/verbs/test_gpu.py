"""On a GPU: what is merged there is quantized to the same bytes as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.progress import Silent
from packager.verbs.build import build
from packager.verbs.merge import merge
from testing.usual_route import read_gguf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_gpu_bundle_holds_what_the_cpu_makes_of_the_same_merged_tensors(
    kind: str,
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    lora, quants = adapter(kind), ("Q4_K_M", "Q8_0", "F16")
    on_gpu = Request(
        str(lora), quants, "m", tmp_path / "gpu", str(small_model(kind)), device="cuda"
    )
    merged = merge(on_gpu, tmp_path / "merged", Silent()).folder

    ours = build(prepare(on_gpu))
    theirs = build(prepare(Request(str(merged), quants, "m", tmp_path / "cpu", device="cpu")))

    for mine, other in zip(ours.asked_for, theirs.asked_for, strict=True):
        _, expected = read_gguf(theirs.folder / other.name, llama_cpp_source)
        _, found = read_gguf(ours.folder / mine.name, llama_cpp_source)
        assert found == expected, mine.quant
