"""A checkpoint, saved as `save_pretrained` saves it, one tensor at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packager.files import partial_path, publish, whole_file
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo
from packager.progress import Progress, Task
from packager.save.shard_files import require_finite, split_into_shards, write_index

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5 * 10**9
# How much of a tensor is read and checked at a time, if it can be read in pieces.
_BLOCK_ELEMENTS = 4 << 20


def save_safetensors(
    checkpoint: Checkpoint, folder: Path, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write every tensor of a checkpoint to `model.safetensors`, or to shards with an index.

    Memory holds one tensor at a time, or a part of it. A file gets its name when it is complete.

    Args:
        checkpoint: what to write; names, shapes and dtypes stay as they are.
        folder: where to; it must exist.
        progress: gets bytes as they are written.
        shard_bytes: the size that a shard may reach.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
    """
    shards = split_into_shards(
        checkpoint.tensors.values(), lambda info: info.size_bytes, shard_bytes
    )
    total_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    paths = []
    with progress.task("Writing merged weights", total_bytes) as task:
        for name, shard in shards.items():
            _write_shard(checkpoint, shard, folder / name, task)
            paths.append(folder / name)
    if len(shards) > 1:
        weight_map = {info.name: name for name, shard in shards.items() for info in shard}
        paths.append(write_index(folder, weight_map, total_bytes))
    return paths


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
                require_finite(info.name, block)
                file.write(block.reshape(-1).view(torch.uint8).numpy().data)
                task.advance(block.nbytes)


def _blocks(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[torch.Tensor]:
    """A tensor in pieces: embeddings are large, and checking them takes as much again."""
    if not info.shape:
        yield checkpoint.load(info.name)
        return
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(info.shape[1:])))
    for block in checkpoint.blocks(info.name, rows):
        yield block.contiguous()


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors from memory to one safetensors file, completely or not at all."""
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
