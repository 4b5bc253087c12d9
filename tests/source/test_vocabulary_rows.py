"""Every token that an adapter's tokenizer adds has a row in the model's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from packager.errors import MissingWeightsError
from packager.package.prepare import prepare
from packager.package.request import Request
from packager.verbs.merge import merge
from tests.requests import request_for


@pytest.fixture
def with_tokens(adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """An adapter whose tokenizer has three more tokens than the model has rows."""
    lora = shutil.copytree(adapter("llama"), tmp_path / "lora")
    tokenizer = AutoTokenizer.from_pretrained(lora)
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    tokenizer.save_pretrained(lora)
    return lora


def start_merge(request: Request, scratch: Path) -> None:
    assert request.build.out is not None
    merge(request, request.build.out)


@pytest.mark.parametrize("start", [start_merge, prepare], ids=["merge", "gguf"])
def test_tokens_without_rows_are_refused(
    start: Callable[[Request, Path], object], with_tokens: Path, tmp_path: Path
) -> None:
    request = request_for(with_tokens, ("Q8_0",), out=tmp_path / "out")

    with pytest.raises(MissingWeightsError, match=r"\b3\b.* '<one>' \(128256\).* 128,256") as error:
        start(request, tmp_path)

    assert error.value.next_step
    assert not (tmp_path / "out").exists()


def test_tokens_without_rows_in_the_base_itself_are_accepted(
    with_tokens: Path, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(small_model("llama"), tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(with_tokens / name, base / name)
    config = json.loads((with_tokens / "tokenizer_config.json").read_text())
    (with_tokens / "tokenizer_config.json").write_text(
        json.dumps(config | {"padding_side": "left"})
    )

    merged = merge(request_for(with_tokens, base=base), tmp_path / "merged")

    assert (merged.saved.folder / "model.safetensors").is_file()
