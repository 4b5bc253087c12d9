"""The files of a saved checkpoint: which tensors go into which shard, and the index of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import USE_EARLIER_CHECKPOINT, NonFiniteError
from packager.files import write_json
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch


def split_into_shards(
    tensors: Iterable[TensorInfo], size_of: Callable[[TensorInfo], int], shard_bytes: int
) -> dict[str, list[TensorInfo]]:
    """The tensors of each file, by its name: `model.safetensors`, or shards as `save_pretrained`'s.

    Args:
        tensors: in the order of writing.
        size_of: the bytes that a tensor takes in the file.
        shard_bytes: the size that a shard may reach; a larger tensor gets a shard of its own.
    """
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in tensors:
        size = size_of(info)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> Path:
    """Write `model.safetensors.index.json`, which says in which shard each tensor is."""
    path = folder / "model.safetensors.index.json"
    write_json(path, {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)})
    return path


def require_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a merged tensor, or a part of it, that holds NaN or Inf.

    Raises:
        NonFiniteError: naming the tensor.
    """
    import torch

    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise NonFiniteError(
            f"The merged tensor {name} holds NaN or Inf.",
            next_step=USE_EARLIER_CHECKPOINT,
        )
