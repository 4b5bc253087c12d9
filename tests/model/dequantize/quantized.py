"""Small quantized checkpoints, and the plain weights that their libraries compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from packager.model.checkpoint import FolderCheckpoint
from packager.model.dequantize.dequantized import Dequantized


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, object],
    **config: object,
) -> Path:
    """A model folder with these tensors and this `quantization_config`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "dtype": "bfloat16", **config}
    config["quantization_config"] = dict(settings)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def opened(folder: Path) -> Dequantized:
    return Dequantized(FolderCheckpoint(folder))


def dequantized(
    folder: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, object], **config: Any
) -> Dequantized:
    return opened(write(folder, tensors, settings, **config))


def same(actual: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal in element type, shape and every bit."""
    return actual.dtype == wanted.dtype and torch.equal(actual, wanted)
