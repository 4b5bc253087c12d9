"""GGUF files, several quants from one read of the weights.

Reading, quantizing and writing overlap. The calling thread reads (and merges) blocks of rows in the
order of the files; `threads` workers turn shares of a block into fp32 and quantize them, once for
each type that some file wants; a thread for each file hashes and appends the blocks, in order.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from packager.errors import NonFiniteError
from packager.files import partial_path
from packager.gguf.convert import Conversion, GgufTensor
from packager.gguf.quantize.quantizer import Quantize, load_quantizers
from packager.gguf.types import TypedQuant, padded, tensor_bytes, write_header
from packager.progress import Progress, Task

if TYPE_CHECKING:
    import numpy as np
    import torch

# What is read at once of a tensor that can be read in blocks: 8 MiB of a 16-bit type.
BLOCK_ELEMENTS = 4 << 20
# One worker's piece of work: large enough that handing it over costs nothing; as fp32 it fits the
# cache of a core, in which it stays for every type that it is quantized to.
_SHARE_ELEMENTS = 1 << 18
# How far reading runs ahead of writing.
AHEAD_ELEMENTS = 4 * BLOCK_ELEMENTS
# Hashed and written at once: larger pieces took Linux up to ten times as long (ext4, 64 MiB).
_WRITE_BYTES = 1 << 20
# Written data is handed to the disk this often, so that little is left to wait for in the end.
_SYNC_BYTES = 128 << 20


@dataclass(frozen=True)
class WrittenGguf:
    """A finished file.

    Attributes:
        path: where it is.
        typed: what it holds.
        size_bytes: its size.
        sha256: its digest, taken while it was written.
    """

    path: Path
    typed: TypedQuant
    size_bytes: int
    sha256: str


class _Output:
    """One file in the making: header first, then data from front to back, hashed on the way.

    A thread of its own appends, in the order in which it is asked to.
    """

    def __init__(self, path: Path, typed: TypedQuant, conversion: Conversion) -> None:
        self.path = path
        self.typed = typed
        partial = partial_path(path)
        write_header(partial, conversion, typed.types, typed.quant.ftype)
        self._digest = hashlib.sha256(partial.read_bytes())
        self._file: BinaryIO = partial.open("ab", buffering=0)
        self._unsynced_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")

    def append(self, block: _Block, type_name: str) -> Future[None]:
        """Append a block when it is quantized, and the padding after the last of a tensor."""
        return self._thread.submit(self._append, block, type_name)

    def _append(self, block: _Block, type_name: str) -> None:
        for share in block.shares:
            share.result()
        self._write(block.made[type_name].data.cast("B"))
        if block.is_last:
            size = tensor_bytes(block.tensor.elements, type_name)
            self._write(bytes(padded(size) - size))

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _WRITE_BYTES):
            piece = view[start : start + _WRITE_BYTES]
            self._digest.update(piece)
            while piece:
                piece = piece[self._file.write(piece) :]
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= _SYNC_BYTES:
            os.fsync(self._file.fileno())
            self._unsynced_bytes = 0

    def finish(self) -> WrittenGguf:
        """Sync what was written; give what it is."""
        size_bytes = self._file.tell()
        os.fsync(self._file.fileno())
        return WrittenGguf(self.path, self.typed, size_bytes, self._digest.hexdigest())

    def close(self) -> None:
        """Let go of thread and file, whatever happened."""
        self._thread.shutdown(cancel_futures=True)
        self._file.close()


@dataclass(frozen=True)
class _Block:
    """Rows of a tensor on their way: what they become in each type, and the work on it."""

    tensor: GgufTensor
    made: Mapping[str, np.ndarray[Any, Any]]
    shares: Sequence[Future[None]]
    is_last: bool


def write_ggufs(
    conversion: Conversion,
    targets: Sequence[tuple[Path, TypedQuant]],
    threads: int,
    progress: Progress,
) -> list[WrittenGguf]:
    """Read every tensor once and write it into each file, under its `.partial` name.

    The files are whole and synced when this returns; `files.publish` gives them their names.

    Args:
        conversion: the tensors, in the order of writing.
        targets: the path and the types of each file.
        threads: how many threads quantize.
        progress: gets the weights' bytes as fp32 as they are done.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
    """
    import torch

    types = {name for _, typed in targets for name in typed.types.values()}
    quantizers = load_quantizers(types, progress)
    total = sum(4 * tensor.elements for tensor in conversion.tensors)
    with ExitStack() as stack:
        # Workers fill the cores: torch's own threads would fight them for these.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        outputs = []
        for path, typed in targets:
            output = _Output(path, typed, conversion)
            stack.callback(output.close)
            outputs.append(output)
        workers = stack.enter_context(_Workers(threads, quantizers))
        task = stack.enter_context(progress.task("Quantizing", total))
        line = _Line(task)
        for tensor in conversion.tensors:
            wanted = [(output, output.typed.types[tensor.name]) for output in outputs]
            left = tensor.elements
            for rows in conversion.blocks(tensor, BLOCK_ELEMENTS):
                left -= rows.numel()
                block = workers.quantize(tensor, rows, {name for _, name in wanted}, left == 0)
                written = [output.append(block, type_name) for output, type_name in wanted]
                line.put(rows.numel(), written)
        line.finish()
        return [output.finish() for output in outputs]


class _Line:
    """The blocks that are read and not yet written everywhere; it is never longer than allowed."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._blocks: deque[tuple[int, Sequence[Future[None]]]] = deque()
        self._elements = 0

    def put(self, elements: int, written: Sequence[Future[None]]) -> None:
        """Add a block; wait for the oldest ones until there is room for another."""
        self._blocks.append((elements, written))
        self._elements += elements
        while self._elements > AHEAD_ELEMENTS:
            self._wait_for_oldest()

    def finish(self) -> None:
        """Wait for all."""
        while self._blocks:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        elements, written = self._blocks.popleft()
        for future in written:
            future.result()
        self._elements -= elements
        self._task.advance(4 * elements)


class _Workers:
    """The threads that quantize."""

    def __init__(self, threads: int, quantizers: Mapping[str, Quantize]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
        self._quantizers = quantizers
        self._own = threading.local()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def quantize(
        self, tensor: GgufTensor, rows: torch.Tensor, type_names: set[str], is_last: bool
    ) -> _Block:
        """Hand out shares of `[rows, columns]`; each is quantized to every type."""
        import numpy as np

        count, columns = rows.shape
        made = {
            name: np.empty((count, tensor_bytes(columns, name)), np.uint8) for name in type_names
        }
        step = max(1, _SHARE_ELEMENTS // columns)
        shares = [
            self._pool.submit(self._quantize, tensor, rows, made, slice(start, start + step))
            for start in range(0, count, step)
        ]
        return _Block(tensor, made, shares, is_last)

    def _quantize(
        self,
        tensor: GgufTensor,
        rows: torch.Tensor,
        made: Mapping[str, np.ndarray[Any, Any]],
        share: slice,
    ) -> None:
        values = self._as_fp32(rows[share])
        _require_finite(tensor, values)
        for type_name, out in made.items():
            self._quantizers[type_name](values, out[share])

    def _as_fp32(self, rows: torch.Tensor) -> np.ndarray[Any, Any]:
        """The rows in memory of this thread, which stays in its core's cache."""
        import torch

        room: torch.Tensor | None = getattr(self._own, "room", None)
        if room is None or room.numel() < rows.numel():
            room = self._own.room = torch.empty(rows.numel(), dtype=torch.float32)
        values = room[: rows.numel()].view(rows.shape)
        values.copy_(rows)
        array: np.ndarray[Any, Any] = values.numpy()
        return array


def _require_finite(tensor: GgufTensor, values: np.ndarray[Any, Any]) -> None:
    import numpy as np

    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "Inf"
        where = f" (the checkpoint's {tensor.passes_from})" if tensor.passes_from else ""
        raise NonFiniteError(
            f"The tensor {tensor.name}{where} holds {kind}.",
            next_step="The training run diverged or overflowed; use an earlier checkpoint, or "
            "bf16 instead of fp16.",
        )
