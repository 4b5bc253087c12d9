"""A checkpoint's GGUF, compared with what llama.cpp makes of the model that was saved.

These models have no vocabulary: neither side writes one. All else of the converter runs.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from packager.gguf.convert import GgufPrompt, ModelSource, convert
from packager.gguf.quants import QUANTS
from packager.gguf.toolchain import Toolchain, find_toolchain
from packager.gguf.types import type_quants, write_skeleton
from packager.gguf.write import write_ggufs
from packager.model.checkpoint import Checkpoint
from packager.model.model_file import ModelFile
from packager.progress import Silent
from testing.usual_route import quantize_with_llama_cpp, read_gguf
from tests.merge.tiny import VOCABULARY


def gguf_differences(
    checkpoint: Checkpoint, wanted: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The tensors and key-values that differ between the Q8_0 of both.

    Args:
        checkpoint: the checkpoint under test.
        wanted: the folder that transformers saved, after PEFT's merge if there is one.
        folder: an empty folder for the files of both sides.
    """
    toolchain = find_toolchain()
    folder.mkdir()
    # Gemma's converter truncates the embeddings to the tokenizer's length.
    tokenizer = json.dumps(
        {"model": {"vocab": dict.fromkeys(range(VOCABULARY))}, "added_tokens": []}
    )
    (wanted / "tokenizer.json").write_text(tokenizer)
    theirs = _by_llama_cpp(wanted, folder, toolchain, monkeypatch)
    files = {"tokenizer.json": ModelFile(wanted / "tokenizer.json")}
    source = ModelSource(checkpoint, files, "model")
    prompt = GgufPrompt(chat_templates={}, end_token_ids=[], begins_with_bos=False)
    (folder / "scratch").mkdir()
    conversion = convert(toolchain, source, prompt, folder / "scratch")
    write_skeleton(folder / "skeleton.gguf", conversion)
    (typed,) = type_quants(conversion, [QUANTS["Q8_0"]], folder / "skeleton.gguf")
    (ours,) = write_ggufs(conversion, [(folder / "ours.gguf", typed)], 1, Silent())
    (values, tensors), (wanted_values, wanted_tensors) = (
        read_gguf(path, toolchain.folder)
        for path in (ours.path.with_name("ours.gguf.partial"), theirs)
    )
    values.pop("tokenizer.ggml.add_bos_token")
    pairs = ((values, wanted_values), (tensors, wanted_tensors))
    return [
        name
        for mine, other in pairs
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name)
    ]


def _by_llama_cpp(
    model: Path, folder: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> Path:
    import torch

    toolchain.activate()
    base: Any = importlib.import_module("conversion.base")
    conversion: Any = importlib.import_module("conversion")
    gguf: Any = importlib.import_module("gguf")
    architecture = base.get_model_architecture(
        base.ModelBase.load_hparams(model, False), base.ModelType.TEXT
    )
    model_class = conversion.get_model_class(architecture)
    monkeypatch.setattr(model_class, "set_vocab", lambda self: None)
    with torch.inference_mode():
        converter = model_class(
            model, gguf.LlamaFileType.MOSTLY_BF16, folder / "wide.gguf", model_name="model"
        )
        converter.write()
    return quantize_with_llama_cpp(folder / "wide.gguf", folder / "theirs.gguf", "Q8_0")
