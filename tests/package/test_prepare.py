"""A model that llama.cpp cannot load is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import InputRefusedError
from packager.package.prepare import prepare
from tests.reports import Reports
from tests.requests import request_for

Edit = Callable[[dict[str, torch.Tensor]], object]


def without(part: str) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return edit


def shorten(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][:1000].clone()


@pytest.fixture
def broken(small_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a changed copy of a full model."""

    def make(edit: Edit = dict, **config: Any) -> Path:
        model = shutil.copytree(small_model("phi3"), tmp_path / "model")
        tensors = load_file(model / "model.safetensors")
        edit(tensors)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return model

    return make


@pytest.mark.parametrize(
    ("edit", "config", "message"),
    [
        (without("layers.1."), {}, r"blk\.1\.attn_norm\.weight"),
        (dict, {"num_hidden_layers": 3}, r"blk\.2\.attn_norm\.weight"),
        (without("model.norm"), {}, r"output_norm\.weight"),
        (without("layers.0.self_attn.o_proj"), {}, r"blk\.0\.attn_output\.weight"),
        (shorten, {}, r"token_embd\.weight.* wrong shape"),
        (dict, {"hidden_size": 512}, r"wrong shape"),
        (dict, {"vocab_size": 10_000_000}, r"config\.json .*`vocab_size` 10,000,000"),
    ],
    ids=["layer", "layers", "norm", "projection", "rows", "width", "vocabulary"],
)
def test_weights_that_do_not_fit_config_json_are_refused(
    edit: Edit, config: dict[str, Any], message: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    request = request_for(broken(edit, **config), ("Q8_0",), out=tmp_path / "out")
    with pytest.raises(InputRefusedError, match=message) as caught:
        prepare(request, tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.next_step
    assert not (tmp_path / "out").exists()


def test_force_only_warns(broken: Callable[..., Path], tmp_path: Path) -> None:
    progress = Reports()
    model = broken(without("model.norm"))
    prepare(request_for(model, ("Q8_0",), force=True), tmp_path, progress)
    assert any("output_norm.weight" in warning for warning in progress.warnings)
