"""A file of named tensors (safetensors, or a pickle of weights only), read lazily and by rows."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import CorruptFileError, MissingWeightsError

if TYPE_CHECKING:
    import torch

# Sizes and names as https://github.com/huggingface/safetensors (README, "Format") defines them.
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "U16": "uint16", "I16": "int16",
    "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
_RESTORE = "Copy or download the file again; its header and its contents disagree."
_SAVE_PRETRAINED = "Save the model with save_pretrained, and package that folder."


@dataclass(frozen=True)
class TensorInfo:
    """The facts about a tensor that are known before it is read.

    Attributes:
        name: the tensor's name in its checkpoint.
        shape: its dimensions, outermost first (`[out_features, in_features]` for a linear layer).
        dtype: the element type by its name in safetensors, such as `BF16`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """The tensor's size in its file, in bytes."""
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]

    @property
    def is_floating_point(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return "F" in self.dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type in torch."""
        import torch

        dtype: torch.dtype = getattr(torch, _TORCH_NAMES[self.dtype])
        return dtype


class SafetensorsFile:
    """One `.safetensors` file; each load reads only the bytes that it needs.

    safetensors' own `get_tensor` returns a view of one private mapping of the file: an in-place
    merge would change what is read next, and keep every page that it touches in memory.

    Raises:
        CorruptFileError: if the header is damaged, or does not match the file's size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = _read_header(path)
        self._data_start = header.size_bytes
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        data_bytes = path.stat().st_size - self._data_start
        entries = [
            _parse_entry(path, name, entry, data_bytes) for name, entry in header.entries.items()
        ]
        end = 0
        for item in sorted(entries, key=lambda item: (item.start, item.info.size_bytes)):
            # The format allows neither gaps nor overlaps: an overlap is made to deceive.
            if item.start != end:
                raise CorruptFileError(
                    f"{path} has the tensor {item.info.name!r} at byte {item.start:,}; it must "
                    f"begin at byte {end:,}.",
                    next_step=_RESTORE,
                )
            end += item.info.size_bytes
            self.tensors[item.info.name] = item.info
            self._offsets[item.info.name] = item.start
        expected_bytes = sum(info.size_bytes for info in self.tensors.values())
        if expected_bytes != data_bytes:
            raise CorruptFileError(
                f"{path} holds {data_bytes:,} bytes of tensors; its header describes "
                f"{expected_bytes:,}.",
                next_step=_RESTORE,
            )
        self._lock = threading.Lock()

    @property
    def header_sha256(self) -> str:
        """The digest of the header: the names, dtypes, shapes and order of the tensors."""
        with self.path.open("rb") as file:
            return hashlib.sha256(file.read(self._data_start)).hexdigest()

    @cached_property
    def _file(self) -> object:
        return self.path.open("rb", buffering=0)

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor; the caller owns its memory."""
        info = self.tensors[name]
        return self._read(info, self._offsets[name], info.shape)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The slices `start` to `stop` of the first dimension; the caller owns their memory."""
        info = self.tensors[name]
        row_bytes = info.size_bytes // info.shape[0]
        shape = (stop - start, *info.shape[1:])
        return self._read(info, self._offsets[name] + start * row_bytes, shape)

    def _read(self, info: TensorInfo, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        size_bytes = math.prod(shape) * _DTYPE_BYTES[info.dtype]
        buffer = torch.empty(size_bytes, dtype=torch.uint8)
        view = memoryview(buffer.numpy().data)
        file = self._file
        with self._lock:
            file.seek(self._data_start + offset)  # type: ignore[attr-defined]
            done = 0
            while done < size_bytes:
                count = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise CorruptFileError(
                        f"{self.path} ended in the middle of {info.name}: it was truncated while "
                        "ftpack was reading it.",
                        next_step="Make sure that nothing writes to the model, then run again.",
                    )
                done += count
        return buffer.view(info.torch_dtype).reshape(shape)


@dataclass(frozen=True)
class _Header:
    """A safetensors header: the description of each tensor, and the bytes before the first one."""

    entries: dict[str, object]
    size_bytes: int


@dataclass(frozen=True)
class _Entry:
    """A tensor, and its first byte within the data."""

    start: int
    info: TensorInfo


def _read_header(path: Path) -> _Header:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, file_bytes - 8):
            first = prefix + file.read(120)
            hint = (
                "It is a Git LFS pointer: run `git lfs pull` in its folder."
                if first.startswith(b"version https://git-lfs")
                else _RESTORE
            )
            raise CorruptFileError(
                f"{path} is not a valid safetensors file ({file_bytes:,} bytes).", next_step=hint
            )
        try:
            header = json.loads(file.read(header_bytes))
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(
                f"{path} has a damaged safetensors header: {error}", next_step=_RESTORE
            ) from error
    if not isinstance(header, dict):
        raise CorruptFileError(
            f"{path} has a safetensors header that is not a JSON object.", next_step=_RESTORE
        )
    header.pop("__metadata__", None)
    return _Header(header, 8 + header_bytes)


def _parse_entry(path: Path, name: str, entry: object, data_bytes: int) -> _Entry:
    """One tensor of a header, checked against the size of the data."""
    try:
        if not isinstance(entry, dict):
            raise ValueError("the entry is not an object")
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
            raise ValueError(f"shape {list(shape)}, bytes {start} to {end}")
        if dtype not in _DTYPE_BYTES:
            raise ValueError(f"dtype {dtype!r} is unknown")
        info = TensorInfo(name, shape, dtype)
        if end - start != info.size_bytes:
            raise ValueError(f"{end - start} bytes for {dtype}{list(shape)}")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} has an invalid header entry for the tensor {name!r}: {error}",
            next_step=_RESTORE,
        ) from error
    if end > data_bytes:
        raise CorruptFileError(
            f"{path} is truncated: {name!r} ends at byte {end:,} of {data_bytes:,}.",
            next_step=_RESTORE,
        )
    return _Entry(start, info)


class PickleFile:
    """One `.bin` file of torch, loaded with `weights_only`, so that no code in it can run.

    Files of torch 1.6 and newer are read one tensor at a time; older ones are loaded completely.

    Raises:
        CorruptFileError: if it is not such a file, or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        try:
            is_zip = zipfile.is_zipfile(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorruptFileError(
                f"{path} cannot be read as plain tensors: {reason}",
                next_step="Save it again with save_pretrained, as safetensors, and package that; "
                "ftpack never loads a pickle that needs to run code.",
            ) from error
        if not isinstance(loaded, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor)
            for key, value in loaded.items()
        ):
            raise CorruptFileError(
                f"{path} does not hold only named tensors.",
                next_step=_SAVE_PRETRAINED,
            )
        names = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}
        for name, value in loaded.items():
            # A view that repeats a few bytes could fill the memory when it is read.
            is_plain = value.layout == torch.strided and str(value.dtype)[6:] in names
            if not is_plain or value.nbytes > value.untyped_storage().nbytes():
                raise CorruptFileError(
                    f"{path} holds {name!r}, which is not a plain tensor ({value.dtype}, "
                    f"{value.layout}).",
                    next_step=_SAVE_PRETRAINED,
                )
        self._loaded: dict[str, torch.Tensor] = loaded
        self.tensors = {
            name: TensorInfo(name, tuple(value.shape), names[str(value.dtype).split(".")[1]])
            for name, value in loaded.items()
        }

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor; the caller owns its memory."""
        import torch

        return self._loaded[name].clone(memory_format=torch.contiguous_format)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The slices `start` to `stop` of the first dimension; the caller owns their memory."""
        import torch

        return self._loaded[name][start:stop].clone(memory_format=torch.contiguous_format)


TensorFile = SafetensorsFile | PickleFile


def open_tensor_file(path: Path) -> TensorFile:
    """A `.safetensors` or `.bin` file, opened by its suffix."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


def require_filled(file: TensorFile) -> TensorFile:
    """The file itself, unless it holds the empty tensors that sharded training leaves.

    Raises:
        MissingWeightsError: with the name of one of them.
    """
    empty = [info.name for info in file.tensors.values() if info.shape == (0,)]
    if empty:
        raise MissingWeightsError(
            f"{file.path} holds {len(empty)} empty tensors, such as {empty[0]!r}: DeepSpeed ZeRO-3 "
            "saved its placeholders.",
            next_step="Set stage3_gather_16bit_weights_on_model_save in DeepSpeed's configuration "
            "and save again, or join the shards of a checkpoint with its zero_to_fp32.py.",
        )
    return file
