"""GGUF files, several quants from one read of the weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from packager.errors import NonFiniteError
from packager.files import partial_path
from packager.gguf.convert import Conversion, GgufTensor
from packager.gguf.quantize import Quantizer
from packager.gguf.types import TypedQuant, padded, tensor_bytes, write_header
from packager.progress import Progress

if TYPE_CHECKING:
    import numpy as np

# 32 MiB of fp32: what is in memory of a tensor that can be read in blocks.
BLOCK_ELEMENTS = 8 << 20


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
    """One file in the making: header first, then data from front to back, hashed on the way."""

    def __init__(self, path: Path, typed: TypedQuant, conversion: Conversion) -> None:
        self.path = path
        self.typed = typed
        partial = partial_path(path)
        write_header(partial, conversion, typed.types, typed.quant.ftype)
        self._digest = hashlib.sha256(partial.read_bytes())
        self.file: BinaryIO = partial.open("ab", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]

    def pad(self, tensor: GgufTensor) -> None:
        size = tensor_bytes(tensor.elements, self.typed.types[tensor.name])
        self.write(bytes(padded(size) - size))

    def finish(self) -> WrittenGguf:
        size_bytes = self.file.tell()
        os.fsync(self.file.fileno())
        self.file.close()
        return WrittenGguf(self.path, self.typed, size_bytes, self._digest.hexdigest())


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
    total = sum(4 * tensor.elements for tensor in conversion.tensors)
    with ExitStack() as stack:
        outputs = []
        for path, typed in targets:
            output = _Output(path, typed, conversion)
            stack.callback(output.file.close)
            outputs.append(output)
        quantizer = stack.enter_context(Quantizer(threads))
        task = stack.enter_context(progress.task("Quantizing", total))
        for tensor in conversion.tensors:
            for block in conversion.blocks(tensor, BLOCK_ELEMENTS):
                _require_finite(tensor, block)
                _write_block(outputs, quantizer, tensor, block)
                task.advance(4 * block.size)
            for output in outputs:
                output.pad(tensor)
        return [output.finish() for output in outputs]


def _write_block(
    outputs: Sequence[_Output], quantizer: Quantizer, tensor: GgufTensor, block: Any
) -> None:
    """Quantize a block once for each type that some file wants, and append it to those files."""
    made: dict[str, memoryview] = {}
    for output in outputs:
        type_name = output.typed.types[tensor.name]
        if type_name not in made:
            made[type_name] = quantizer.quantize(block, type_name).data.cast("B")
        output.write(made[type_name])


def _require_finite(tensor: GgufTensor, block: np.ndarray[Any, Any]) -> None:
    import numpy as np

    if not np.isfinite(block).all():
        kind = "NaN" if np.isnan(block).any() else "Inf"
        where = f" (the checkpoint's {tensor.passes_from})" if tensor.passes_from else ""
        raise NonFiniteError(
            f"The tensor {tensor.name}{where} holds {kind}.",
            next_step="The training run diverged or overflowed; use an earlier checkpoint, or "
            "bf16 instead of fp16.",
        )
