"""Writing GGUF files: several quants from one read of the weights.

Reading, quantizing and writing overlap. The calling thread reads (and merges) blocks of rows in the
order of the files. `threads` workers convert chunks of a block to fp32 and quantize them, once for
each type that a file needs. One thread per file hashes and appends the blocks in order.
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

# The size of a block, for tensors that can be read in blocks: 8 MiB of a 16-bit type.
BLOCK_ELEMENTS = 4 << 20
# One worker's piece of work: large enough that handing it over costs nothing, and small enough that
# as fp32 it stays in a core's cache for every type that it is quantized to.
_CHUNK_ELEMENTS = 1 << 18
# How far reading may run ahead of writing.
AHEAD_ELEMENTS = 4 * BLOCK_ELEMENTS
# The bytes hashed and written at once: larger pieces took Linux up to ten times as long (ext4,
# 64 MiB).
_WRITE_BYTES = 1 << 20
# Data is synced to the disk this often, so that little is left to wait for at the end.
_SYNC_BYTES = 128 << 20


@dataclass(frozen=True)
class WrittenGguf:
    """A finished file.

    Attributes:
        path: its final path; until `files.publish`, it has its `.partial` name.
        typed: its quant, and the types of its tensors.
        size_bytes: its size.
        sha256: its digest, computed while it was written.
    """

    path: Path
    typed: TypedQuant
    size_bytes: int
    sha256: str


class _Output:
    """One file while it is written: the header, then data from front to back, hashed on the way.

    Its own thread appends the blocks in the order of the calls.
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
        """Append a block once it is quantized, and the padding after a tensor's last block."""
        return self._thread.submit(self._append, block, type_name)

    def _append(self, block: _Block, type_name: str) -> None:
        for chunk in block.chunks:
            chunk.result()
        self._write(block.outputs[type_name].data.cast("B"))
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
        """Sync the file; return what was written."""
        size_bytes = self._file.tell()
        os.fsync(self._file.fileno())
        return WrittenGguf(self.path, self.typed, size_bytes, self._digest.hexdigest())

    def close(self) -> None:
        """Release the thread and the file, also after an error."""
        self._thread.shutdown(cancel_futures=True)
        self._file.close()


@dataclass(frozen=True)
class _Block:
    """Rows of a tensor that are being quantized.

    Attributes:
        tensor: the tensor.
        outputs: the quantized rows by type, uint8 `[rows, bytes per row]`, filled by `chunks`.
        chunks: the pieces of work.
        is_last: whether these are the tensor's last rows.
    """

    tensor: GgufTensor
    outputs: Mapping[str, np.ndarray[Any, Any]]
    chunks: Sequence[Future[None]]
    is_last: bool


def write_ggufs(
    conversion: Conversion,
    targets: Sequence[tuple[Path, TypedQuant]],
    threads: int,
    progress: Progress,
) -> list[WrittenGguf]:
    """Read every tensor once and write it into each file, under its `.partial` name.

    When this returns, the files are complete and synced; `files.publish` gives them their names.

    Args:
        conversion: the tensors, in the order of writing.
        targets: the path and the types of each file.
        threads: how many threads quantize.
        progress: gets a task, counted in bytes of the weights as fp32.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
    """
    import torch

    types = {name for _, typed in targets for name in typed.types.values()}
    quantizers = load_quantizers(types, progress)
    total = sum(4 * tensor.elements for tensor in conversion.tensors)
    with ExitStack() as stack:
        # The workers use all cores; torch's own threads would compete with them.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        outputs = []
        for path, typed in targets:
            output = _Output(path, typed, conversion)
            stack.callback(output.close)
            outputs.append(output)
        workers = stack.enter_context(_Workers(threads, quantizers))
        task = stack.enter_context(progress.task("Quantizing", total))
        in_flight = _InFlight(task)
        for tensor in conversion.tensors:
            wanted = [(output, output.typed.types[tensor.name]) for output in outputs]
            remaining = tensor.elements
            for rows in conversion.blocks(tensor, BLOCK_ELEMENTS):
                remaining -= rows.numel()
                block = workers.quantize(tensor, rows, {name for _, name in wanted}, remaining == 0)
                appends = [output.append(block, type_name) for output, type_name in wanted]
                in_flight.put(rows.numel(), appends)
        in_flight.finish()
        return [output.finish() for output in outputs]


class _InFlight:
    """The blocks that are read but not written to every file yet, at most `AHEAD_ELEMENTS`."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._blocks: deque[tuple[int, Sequence[Future[None]]]] = deque()
        self._elements = 0

    def put(self, elements: int, appends: Sequence[Future[None]]) -> None:
        """Add a block; wait for the oldest blocks until there is room for another."""
        self._blocks.append((elements, appends))
        self._elements += elements
        while self._elements > AHEAD_ELEMENTS:
            self._wait_for_oldest()

    def finish(self) -> None:
        """Wait for all blocks."""
        while self._blocks:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        elements, appends = self._blocks.popleft()
        for future in appends:
            future.result()
        self._elements -= elements
        self._task.advance(4 * elements)


class _Workers:
    """The threads that quantize."""

    def __init__(self, threads: int, quantizers: Mapping[str, Quantize]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
        self._quantizers = quantizers
        self._local = threading.local()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def quantize(
        self, tensor: GgufTensor, rows: torch.Tensor, type_names: set[str], is_last: bool
    ) -> _Block:
        """Hand out chunks of `[rows, columns]`, each to be quantized to every type."""
        import numpy as np

        count, columns = rows.shape
        outputs = {
            name: np.empty((count, tensor_bytes(columns, name)), np.uint8) for name in type_names
        }
        step = max(1, _CHUNK_ELEMENTS // columns)
        chunks = [
            self._pool.submit(self._quantize, tensor, rows, outputs, slice(start, start + step))
            for start in range(0, count, step)
        ]
        return _Block(tensor, outputs, chunks, is_last)

    def _quantize(
        self,
        tensor: GgufTensor,
        rows: torch.Tensor,
        outputs: Mapping[str, np.ndarray[Any, Any]],
        chunk: slice,
    ) -> None:
        values = self._as_fp32(rows[chunk])
        _require_finite(tensor, values)
        for type_name, out in outputs.items():
            self._quantizers[type_name](values, out[chunk])

    def _as_fp32(self, rows: torch.Tensor) -> np.ndarray[Any, Any]:
        """The rows in memory that this thread reuses, and that stays in its core's cache."""
        import torch

        buffer: torch.Tensor | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < rows.numel():
            buffer = self._local.buffer = torch.empty(rows.numel(), dtype=torch.float32)
        values = buffer[: rows.numel()].view(rows.shape)
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
