"""A checkpoint written as `save_pretrained` writes it, one tensor at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import NonFiniteError
from packager.files import partial_path, publish, whole_file, write_json
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo
from packager.progress import Progress, Task

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5 * 10**9
# What is read and checked at once of a tensor that can be read in pieces.
_BLOCK_ELEMENTS = 4 << 20


def save_safetensors(
    checkpoint: Checkpoint, folder: Path, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write every tensor of a checkpoint into `model.safetensors`, or shards with an index.

    Memory holds one tensor at a time, or a part of it. Files get their names when they are whole.

    Args:
        checkpoint: what to write; names, shapes and dtypes stay as they are.
        folder: where to; it must exist.
        progress: gets bytes as they are written.
        shard_bytes: the size that a shard may reach.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
    """
    shards = _split(list(checkpoint.tensors.values()), shard_bytes)
    total_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    paths, weight_map = [], {}
    with progress.task("Writing merged weights", total_bytes) as task:
        for number, shard in enumerate(shards, start=1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors"
            )
            _write_shard(checkpoint, shard, folder / name, task)
            paths.append(folder / name)
            weight_map.update({info.name: name for info in shard})
    if len(shards) > 1:
        index = folder / "model.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
        paths.append(index)
    return paths


def _split(tensors: Sequence[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in tensors:
        if shards[-1] and filled + info.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += info.size_bytes
    return shards


def _write_shard(
    checkpoint: Checkpoint, shard: Sequence[TensorInfo], path: Path, task: Task
) -> None:
    import torch

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in shard:
        end = offset + info.size_bytes
        header[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for info in shard:
            for block in _blocks(checkpoint, info):
                if block.is_floating_point() and not torch.isfinite(block).all():
                    raise NonFiniteError(
                        f"The merged tensor {info.name} holds NaN or Inf.",
                        next_step="The training run diverged or overflowed; use an earlier "
                        "checkpoint.",
                    )
                file.write(block.reshape(-1).view(torch.uint8).numpy().data)
                task.advance(block.nbytes)


def _blocks(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[torch.Tensor]:
    """A tensor in pieces: embeddings, and what is computed to check them, are the largest."""
    if not info.shape:
        yield checkpoint.load(info.name)
        return
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(info.shape[1:])))
    for block in checkpoint.blocks(info.name, rows):
        yield block.contiguous()


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors that are in memory as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    partial = partial_path(path)
    try:
        save_file(dict(tensors), partial, metadata={"format": "pt"})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    publish(path)
