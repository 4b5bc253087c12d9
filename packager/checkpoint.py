"""A checkpoint: named tensors that are read one at a time, and the files that describe them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from packager.errors import CorruptFileError, MissingWeightsError
from packager.files import read_json, require_inside, sha256_file

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
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


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


class Checkpoint(Protocol):
    """A read-only set of named tensors; nothing is read until it is asked for.

    `tensors` is in the order in which reading is cheapest. What `load` and `blocks` give is memory
    that belongs to the caller.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        ...

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that are not weights (config, tokenizer, licence, ...), by file name."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU."""
        ...

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension, on the CPU."""
        ...


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

    Raises:
        CorruptFileError: if it is no such file, or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
        return self._loaded[name].clone()

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The slices `start` to `stop` of the first dimension, in memory of their own."""
        return self._loaded[name][start:stop].clone()


TensorFile = SafetensorsFile | PickleFile


def open_tensor_file(path: Path) -> TensorFile:
    """Open a `.safetensors` or `.bin` file by its suffix."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


class FolderCheckpoint:
    """A model folder as `save_pretrained` writes it: `config.json`, and one weight file or shards.

    Raises:
        MissingWeightsError: if there are no weights, or a shard that the index names is not there.
        CorruptFileError: if a file cannot be read, or shards and index do not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.weight_files = [open_tensor_file(path) for path in find_weight_files(folder)]
        self._file_of: dict[str, TensorFile] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for file in self.weight_files:
            for name, info in file.tensors.items():
                if name in self._tensors:
                    raise CorruptFileError(
                        f"{folder} holds the tensor {name!r} twice: in {self._file_of[name].path} "
                        f"and in {file.path}.",
                        next_step="Remove the weight file that does not belong to this model.",
                    )
                self._tensors[name] = info
                self._file_of[name] = file
        self._require_listed()

    def _require_listed(self) -> None:
        index = find_index(self.folder)
        listed = read_json(index).get("weight_map") if index else None
        names = listed if isinstance(listed, dict) else {}
        missing = [name for name in names if name not in self._tensors]
        if missing:
            raise CorruptFileError(
                f"{index} lists {len(missing)} tensors that no shard holds: "
                f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}.",
                next_step="Download or save the model again: index and shards do not agree.",
            )

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name, in the order of the files."""
        return self._tensors

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """The files that are not weights, by file name."""
        return describing_files(self.folder)

    def index_sha256(self) -> str | None:
        """The digest of what says which tensors it has: the index, or its only file's header."""
        if index := find_index(self.folder):
            return sha256_file(index)
        (only,) = self.weight_files
        return only.header_sha256 if isinstance(only, SafetensorsFile) else None

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU, in memory of its own."""
        return self._file_of[name].load(name)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension, read one by one."""
        total = self._tensors[name].shape[0]
        for start in range(0, total, rows):
            yield self._file_of[name].load_rows(name, start, min(start + rows, total))


def describing_files(folder: Path) -> dict[str, Path]:
    """The plain files of a folder that are no weights, by name; further chat templates too.

    transformers keeps those in a folder inside: their names begin with it.
    """
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    found = {
        path.relative_to(folder).as_posix(): path
        for path in (*sorted(folder.iterdir()), *templates)
        if path.is_file()
        # Code is never run, and so it is no part of what describes a model: the converter hands
        # the folder to transformers, which would import it.
        and path.suffix not in (*_WEIGHT_SUFFIXES, ".py")
        and not path.name.endswith((".index.json", ".partial"))
    }
    for path in found.values():
        require_inside(path, folder)
    _require_readable(folder)
    return found


def _require_readable(folder: Path) -> None:
    """Refuse what is there by name and cannot be read as a file: without it, others would be taken.

    In the Hub cache that is a link to a file that was removed.
    """
    for path in sorted(folder.iterdir()):
        is_described = path.suffix in (".json", ".jinja", ".model")
        if is_described and not path.is_file() and not path.is_dir():
            what = "a link to what is not there" if path.is_symlink() else "no plain file"
            raise CorruptFileError(
                f"{path} is {what}.", next_step="Download the file again, or remove it."
            )


def find_index(folder: Path) -> Path | None:
    """The index of a model's shards, where it has one."""
    paths = [folder / f"{stem}.index.json" for stem in ("model.safetensors", "pytorch_model.bin")]
    single = (folder / "model.safetensors").is_file()
    return next((p for p in (paths[:1] if single else paths) if p.is_file()), None)


def find_weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, by its index where there is one.

    Raises:
        MissingWeightsError: naming the files that should be there.
        CorruptFileError: if the index names a file outside of the folder, or a link leads there.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.is_file():
            require_inside(index, folder)
            return [require_inside(path, folder) for path in _indexed_files(index)]
        if single.is_file():
            return [require_inside(single, folder)]
    raise MissingWeightsError(
        f"{folder} has a config.json, but neither model.safetensors nor an index of shards.",
        next_step="Download or save the weights into that folder, or name the one that has them.",
    )


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFileError(
            f"{index} has no `weight_map`.", next_step="Download or save the model again."
        )
    names = sorted({str(name) for name in weight_map.values()})
    # A download from a stranger must not make ftpack read the rest of the disk.
    outside = [name for name in names if name in ("", ".", "..") or re.search(r"[/\\\0]", name)]
    if outside:
        raise CorruptFileError(
            f"{index} names {outside[0][:200]!r}, which is no file in its folder.",
            next_step="Download the model again, from someone whom you trust.",
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise MissingWeightsError(
            f"{index} names {len(names)} weight files, of which {len(missing)} are missing: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}.",
            next_step="Finish the download, or save the model again.",
        )
    return [index.parent / name for name in names]
