"""Writes random weights as safetensors piece by piece, for models larger than the memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

_PIECE_ELEMENTS = 1 << 23
_DTYPE_BYTES = {"BF16": 2, "F32": 4}

# Takes a tensor's name and a number of elements; returns that many values.
Fill = Callable[[str, int], "torch.Tensor"]


class Entry(NamedTuple):
    """The name and shape of a tensor to write."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)


def write_sharded(
    folder: Path, entries: Sequence[Entry], dtype: str, fill: Fill, shard_bytes: int
) -> None:
    """Writes `model.safetensors`, or shards with an index, with the names of `save_pretrained`."""
    size = _DTYPE_BYTES[dtype]
    shards: list[list[Entry]] = [[]]
    used = 0
    for entry in entries:
        if shards[-1] and used + entry.elements * size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.elements * size
    if len(shards) == 1:
        write_file(folder / "model.safetensors", entries, dtype, fill)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, dtype, fill)
        weight_map |= {entry.name: name for entry in shard}
    total = sum(entry.elements for entry in entries)
    index = {
        "metadata": {"total_parameters": total, "total_size": total * size},
        "weight_map": weight_map,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def write_file(path: Path, entries: Sequence[Entry], dtype: str, fill: Fill) -> None:
    """Writes one file: the header's length in 8 bytes, the header in JSON, the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.elements * _DTYPE_BYTES[dtype]
        header[entry.name] = {
            "dtype": dtype,
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            _write_tensor(file, entry, dtype, fill)


def _write_tensor(file: Any, entry: Entry, dtype: str, fill: Fill) -> None:
    import torch

    kind = {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    for begin in range(0, entry.elements, _PIECE_ELEMENTS):
        piece = fill(entry.name, min(_PIECE_ELEMENTS, entry.elements - begin))
        file.write(piece.to(kind).contiguous().view(torch.uint8).numpy().data)
