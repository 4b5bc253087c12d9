"""The manifest identifies the base that was used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from packager.package.provenance import base_identity
from packager.progress import Silent
from packager.source.inputs import find_inputs
from packager.source.source_options import SourceOptions
from tests.source.base.test_find import COMMIT, put


def test_a_recorded_path_in_a_cache_becomes_the_id_and_commit(
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = put(tmp_path / "hub", "someone/tiny", small_model("llama"))
    shutil.copytree(adapter("llama"), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(snapshot)
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))

    identity = base_identity(find_inputs(SourceOptions(str(tmp_path / "lora")), Silent()))

    assert (identity.id, identity.revision) == ("someone/tiny", COMMIT)
    path, weights = snapshot / "config.json", snapshot / "model.safetensors"
    assert identity.config_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    header_bytes = int.from_bytes(weights.read_bytes()[:8], "little")
    header = weights.read_bytes()[: 8 + header_bytes]
    assert identity.index_sha256 == hashlib.sha256(header).hexdigest()
