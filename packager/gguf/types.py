"""Which type each tensor gets in a quant, as a dry run of llama.cpp's quantizer decides."""

from __future__ import annotations

import importlib
import os
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packager.errors import UnsupportedError
from packager.gguf.convert import Conversion
from packager.gguf.quants import QUANTS, Quant
from packager.runtime.llama_log import collect_log

_TENSOR_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[.*\], type = +(?P<old>\w+), "
    r"size = .*?MiB(?: -> .*?MiB \((?P<new>\w+)\))?$"
)
_FALLBACK_LINE = re.compile(
    r"warning: +(?P<name>\S+) +- ncols.*\(required for type +(?P<wanted>\w+)\).*"
    r"-> falling back to +(?P<given>\w+)"
)
_NEEDS_IMATRIX = "will require an imatrix"


@dataclass(frozen=True)
class TypedQuant:
    """A quant of one model: the type of every tensor, and the size.

    Attributes:
        quant: the quant.
        types: GGML types, such as `Q4_K`, by GGUF tensor name.
        fallbacks: one line for each tensor that cannot have its intended type.
        size_bytes: the tensors' bytes, including the padding between them.
        bits_per_weight: the true average over all weights of the model.
        needs_imatrix: whether llama.cpp makes it only with an importance matrix.
    """

    quant: Quant
    types: Mapping[str, str]
    fallbacks: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    needs_imatrix: bool


def write_header(path: Path, conversion: Conversion, types: Mapping[str, str], ftype: int) -> int:
    """Write a GGUF's header, metadata and tensor directory; return the offset of the data."""
    import numpy as np

    gguf: Any = importlib.import_module("gguf")
    writer = _writer_class()(path=None, arch=conversion.architecture)
    writer.packed = conversion.packed
    writer.kv_data[0] = dict(conversion.key_values)
    # Last, and in this order, as llama.cpp's quantizer writes them: Ollama runs that quantizer on
    # the file again, and stores one copy instead of two if nothing changes.
    for key, value in (("quantization_version", gguf.GGML_QUANT_VERSION), ("file_type", ftype)):
        writer.remove_key(f"general.{key}")
        writer.add_uint32(f"general.{key}", value)
    is_quantized = all(quant.ftype != ftype for quant in QUANTS.values() if quant.is_float)
    for tensor in conversion.tensors:
        ggml_type = gguf.GGMLQuantizationType[types[tensor.name]]
        writer.add_tensor_info(
            tensor.name,
            _trimmed(tensor.shape) if is_quantized else tensor.shape,
            np.dtype(np.float32),  # ignored: raw_dtype is given
            tensor_bytes(tensor.elements, types[tensor.name]),
            raw_dtype=ggml_type,
        )
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    file.flush()
    offset: int = file.tell()
    writer.close()
    return offset


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as llama.cpp's quantizer writes it (`ggml_n_dims`): a single row is a vector."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


@cache
def _writer_class() -> Any:
    gguf: Any = importlib.import_module("gguf")

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        """gguf's writer, which packs each list once, for all files and the dry run.

        gguf packs the hundreds of thousands of strings in a vocabulary one by one; that takes half
        a second each time.
        """

        packed: dict[int, bytes]

        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if not isinstance(val, list):
                try:
                    result: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
                except (struct.error, ValueError) as error:
                    raise UnsupportedError(
                        f"The converter takes {val!r} from this model's configuration, which does "
                        f"not fit in a GGUF: {error}.",
                        next_step="Check the numbers in config.json and generation_config.json.",
                    ) from error
                return result
            # By identity: the conversion keeps the lists alive as long as their bytes.
            if id(val) not in self.packed:
                self.packed[id(val)] = self._pack_list(val, vtype, sub_type)
            return (self._pack("I", vtype) if add_vtype else b"") + self.packed[id(val)]

        def _pack_list(self, items: list[Any], vtype: Any, sub_type: Any) -> bytes:
            kinds = {type(item) for item in items}
            if sub_type is not None or kinds not in ({str}, {int}, {float}):
                result: bytes = super()._pack_val(items, vtype, False, sub_type)
                return result
            kind = gguf.GGUFValueType.get_type(items[0])
            head: bytes = self._pack("I", kind) + self._pack("Q", len(items))
            if kind != gguf.GGUFValueType.STRING:
                return head + struct.pack(
                    f"<{len(items)}{self._simple_value_packing[kind]}", *items
                )
            encoded = [item.encode("utf-8") for item in items]
            length = struct.Struct("<Q").pack
            return head + b"".join([part for item in encoded for part in (length(len(item)), item)])

    return Writer


def tensor_bytes(elements: int, type_name: str) -> int:
    """The size of a tensor in a GGML type."""
    gguf: Any = importlib.import_module("gguf")
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    return int(elements // block * block_bytes)


def padded(size_bytes: int) -> int:
    """A size rounded up to GGUF's alignment (32 bytes)."""
    return -(-size_bytes // 32) * 32


def write_skeleton(path: Path, conversion: Conversion) -> None:
    """Write a sparse GGUF: the real header and metadata, and a hole instead of the data."""
    floats = {tensor.name: tensor.float_type for tensor in conversion.tensors}
    offset = write_header(path, conversion, floats, ftype=1)
    data_bytes = sum(
        padded(tensor_bytes(tensor.elements, tensor.float_type)) for tensor in conversion.tensors
    )
    os.truncate(path, offset + data_bytes)


def type_quants(
    conversion: Conversion, quants: Iterable[Quant], skeleton: Path
) -> list[TypedQuant]:
    """Every tensor's type in each quant, decided without reading a weight.

    `llama_model_quantize` runs with `dry_run` on a sparse file with the real header and a hole for
    the data (`write_skeleton`), and logs the type of each tensor.
    """
    return [_type_quant(conversion, quant, skeleton) for quant in quants]


def type_floats(conversion: Conversion, quant: Quant) -> TypedQuant:
    """Every tensor's type in a quant of floats, as the converter decides."""
    return _type_quant(conversion, quant, None)


def _type_quant(conversion: Conversion, quant: Quant, skeleton: Path | None) -> TypedQuant:
    if quant.is_float or skeleton is None:
        log, types = "", _float_types(conversion, quant)
    else:
        log = _dry_run(skeleton, quant)
        types = _parse_types(log)
    missing = [tensor.name for tensor in conversion.tensors if tensor.name not in types]
    if missing:
        raise UnsupportedError(
            f"llama.cpp's quantizer gave no {quant.name} type for {missing[0]} and "
            f"{len(missing) - 1} other tensors.",
            next_step="Run with -v and report it, with the version of llama-cpp-python.",
        )
    sizes = [tensor_bytes(t.elements, types[t.name]) for t in conversion.tensors]
    return TypedQuant(
        quant=quant,
        types=types,
        fallbacks=tuple(
            f"{match['name']}: {match['given'].upper()} instead of {match['wanted'].upper()}"
            for match in map(_FALLBACK_LINE.search, log.splitlines())
            if match
        ),
        size_bytes=sum(map(padded, sizes)),
        bits_per_weight=8 * sum(sizes) / sum(t.elements for t in conversion.tensors),
        needs_imatrix=_NEEDS_IMATRIX in log,
    )


def _float_types(conversion: Conversion, quant: Quant) -> dict[str, str]:
    """As the converter's `--outtype` decides: what is fp32 in a 16-bit GGUF stays fp32."""
    return {
        tensor.name: quant.name if tensor.float_type == conversion.float_type else tensor.float_type
        for tensor in conversion.tensors
    }


def _parse_types(log: str) -> dict[str, str]:
    gguf: Any = importlib.import_module("gguf")
    names = {ggml_type.name.lower(): ggml_type.name for ggml_type in gguf.GGMLQuantizationType}
    return {
        match["name"]: names[(match["new"] or match["old"]).lower()]
        for match in map(_TENSOR_LINE.match, log.splitlines())
        if match
    }


def _dry_run(skeleton: Path, quant: Quant) -> str:
    """What `llama_model_quantize` logs in a dry run."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = quant.ftype
    parameters.dry_run = True
    with collect_log() as log:
        status = llama_cpp.llama_model_quantize(str(skeleton).encode(), b"", parameters)
    if status:
        lines = (line.strip() for line in reversed(log.text.splitlines()) if "rror" in line)
        raise UnsupportedError(
            f"llama.cpp's quantizer refuses this model as {quant.name}: {next(lines, 'no reason')}",
            next_step="Choose another quant; `ftpack gguf SOURCE --dry-run` lists them.",
        )
    return log.text


def require_no_imatrix(typed: Iterable[TypedQuant], wanted: Collection[Quant]) -> None:
    """Refuse quants that llama.cpp makes only with an importance matrix.

    Args:
        typed: the quants of the model.
        wanted: those that will be written.

    Raises:
        UnsupportedError: naming the quants.
    """
    names = [item.quant.name for item in typed if item.needs_imatrix and item.quant in wanted]
    if names:
        raise UnsupportedError(
            f"llama.cpp makes {', '.join(names)} only with an importance matrix.",
            next_step="Choose a larger quant: `ftpack gguf SOURCE --dry-run` lists them.",
        )
