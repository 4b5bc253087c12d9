"""The manifest identifies base and adapters by digest, and gives the reason for the prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from packager.package.prepare import prepare
from packager.verbs.build import build
from tests.requests import request_for


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_names_base_adapter_tools_and_decisions(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base, lora, out = small_model("llama"), adapter("llama"), tmp_path / "out"

    build(prepare(request_for(lora, ("Q4_0",), "x", out, system="Be terse."), tmp_path))

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base"]["config_sha256"] == digest(base / "config.json")
    assert manifest["adapters"][0]["sha256"] == digest(lora / "adapter_model.safetensors")
    assert manifest["adapters"][0]["method"] == "LoRA"
    assert manifest["adapters"][0]["rank"] == 16
    assert {"ftpack", "llama-cpp-python", "peft", "torch", "transformers"} <= set(manifest["tools"])
    (gguf,) = manifest["ggufs"]
    assert gguf["sha256"] == digest(out / "x-Q4_0.gguf")
    assert gguf["size_bytes"] == (out / "x-Q4_0.gguf").stat().st_size
    assert manifest["prompt"]["system"] == "Be terse."
    assert manifest["prompt"]["reason"]
    assert "<|eot_id|>" in manifest["prompt"]["stops"]
    assert "SYSTEM" in (out / "Modelfile").read_text(encoding="utf-8")
