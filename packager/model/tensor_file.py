"""A file of named tensors, safetensors or a pickle of weights only: read one at a time, by rows."""

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
_RESTORE = "Copy or download the file again; its size differs from what its header promises."


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes:
        name: the tensor's name in its checkpoint.
        shape: its dimensions, outermost first (`[out_features, in_features]` for a linear layer).
        dtype: safetensors' name of the element type, such as `BF16`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """The bytes that the tensor takes in its file."""
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]

    @property
    def is_floating_point(self) -> bool:
        """Whether its elements are no whole numbers."""
        return "F" in self.dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type as torch names it."""
        import torch

        dtype: torch.dtype = getattr(torch, _TORCH_NAMES[self.dtype])
        return dtype


class SafetensorsFile:
    """One `.safetensors` file, read by plain reads of just the bytes that are asked for.

    Not by safetensors' own `get_tensor`: that is a view of one private mapping of the file, so that
    an in-place merge changes what is read next and keeps every touched page in memory.

    Raises:
        CorruptFileError: if the header is damaged, or does not fit the file's size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self._data_start = _read_header(path)
        header.pop("__metadata__", None)
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        data_bytes = path.stat().st_size - self._data_start
        entries = [(_parse_entry(path, name, entry, data_bytes)) for name, entry in header.items()]
        end = 0
        for start, info in sorted(entries, key=lambda item: (item[0], item[1].size_bytes)):
            # The format knows no holes and no sharing: what overlaps is made to deceive.
            if start != end:
                raise CorruptFileError(
                    f"{path} has the tensor {info.name!r} at byte {start:,}, where {end:,} is "
                    "next.",
                    next_step=_RESTORE,
                )
            end += info.size_bytes
            self.tensors[info.name] = info
            self._offsets[info.name] = start
        expected_bytes = sum(info.size_bytes for info in self.tensors.values())
        if expected_bytes != data_bytes:
            raise CorruptFileError(
                f"{path} holds {data_bytes:,} bytes of tensors, its header promises "
                f"{expected_bytes:,}.",
                next_step=_RESTORE,
            )
        self._lock = threading.Lock()

    @property
    def header_sha256(self) -> str:
        """The digest of the header: names, dtypes, shapes and order of the tensors."""
        with self.path.open("rb") as file:
            return hashlib.sha256(file.read(self._data_start)).hexdigest()

    @cached_property
    def _file(self) -> object:
        return self.path.open("rb", buffering=0)

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, in memory of its own."""
        info = self.tensors[name]
        return self._read(info, self._offsets[name], info.shape)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The slices `start` to `stop` of the first dimension, in memory of their own."""
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
                        f"{self.path} ended in the middle of {info.name}: the file was cut while "
                        "it was being read.",
                        next_step="Make sure that nothing writes to the model, then run again.",
                    )
                done += count
        return buffer.view(info.torch_dtype).reshape(shape)


def _read_header(path: Path) -> tuple[dict[str, object], int]:
    """The JSON header of a safetensors file, and where the tensors begin."""
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
                f"{path} is no complete safetensors file ({file_bytes:,} bytes).", next_step=hint
            )
        try:
            header = json.loads(file.read(header_bytes))
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(
                f"{path} has a damaged safetensors header: {error}", next_step=_RESTORE
            ) from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path} has a safetensors header that is no object.",
                               next_step=_RESTORE)  # fmt: skip
    return header, 8 + header_bytes


def _parse_entry(path: Path, name: str, entry: object, data_bytes: int) -> tuple[int, TensorInfo]:
    """A header's entry as (offset, info), checked against the size of the data."""
    try:
        if not isinstance(entry, dict):
            raise ValueError("it is no object")
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
            f"{path} describes the tensor {name!r} wrongly: {error}", next_step=_RESTORE
        ) from error
    if end > data_bytes:
        raise CorruptFileError(
            f"{path} is truncated: {name!r} ends at byte {end:,} of {data_bytes:,}.",
            next_step=_RESTORE,
        )
    return start, info


class PickleFile:
    """One `.bin` file of torch, loaded with `weights_only`: no code in it can run.

    Of what torch 1.6 and newer write, a tensor is read when it is asked for; older files are in
    memory as a whole.

    Raises:
        CorruptFileError: if it is no such file, or holds anything but tensors.
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
                next_step="Save it again as safetensors (save_pretrained does), and package that; "
                "pickles that need to run code are never loaded.",
            ) from error
        if not isinstance(loaded, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor)
            for key, value in loaded.items()
        ):
            raise CorruptFileError(
                f"{path} holds something else than named tensors.",
                next_step="Save the model with save_pretrained, and package that folder.",
            )
        names = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}
        for name, value in loaded.items():
            # A view that repeats a few bytes would fill the memory when it is read.
            is_plain = value.layout == torch.strided and str(value.dtype)[6:] in names
            if not is_plain or value.nbytes > value.untyped_storage().nbytes():
                raise CorruptFileError(
                    f"{path} holds {name!r} as no plain tensor ({value.dtype}, {value.layout}).",
                    next_step="Save the model with save_pretrained, and package that folder.",
                )
        self._loaded: dict[str, torch.Tensor] = loaded
        self.tensors = {
            name: TensorInfo(name, tuple(value.shape), names[str(value.dtype).split(".")[1]])
            for name, value in loaded.items()
        }

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, in memory of its own."""
        import torch

        return self._loaded[name].clone(memory_format=torch.contiguous_format)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The slices `start` to `stop` of the first dimension, in memory of their own."""
        import torch

        return self._loaded[name][start:stop].clone(memory_format=torch.contiguous_format)


TensorFile = SafetensorsFile | PickleFile


def open_tensor_file(path: Path) -> TensorFile:
    """Open a `.safetensors` or `.bin` file by its suffix."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


def require_filled(file: TensorFile) -> TensorFile:
    """The file itself, if its tensors are not the empties that sharded training leaves.

    Raises:
        MissingWeightsError: naming one of them.
    """
    empty = [info.name for info in file.tensors.values() if info.shape == (0,)]
    if empty:
        raise MissingWeightsError(
            f"{file.path} holds {len(empty)} tensors without any element, such as {empty[0]!r}: "
            "DeepSpeed ZeRO-3 has saved its placeholders.",
            next_step="Set stage3_gather_16bit_weights_on_model_save in DeepSpeed's configuration "
            "and save again, or join the shards of a checkpoint with its zero_to_fp32.py.",
        )
    return file
