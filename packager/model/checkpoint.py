"""A checkpoint: named tensors, read one at a time, with the files that describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from packager.errors import SAVE_MODEL_AGAIN, CorruptFileError, MissingWeightsError, listed
from packager.files import is_inside, read_json, require_inside, sha256_file
from packager.model.config import CONFIG_NAME, ModelConfig, read_config
from packager.model.model_file import ModelFile
from packager.model.tensor_file import (
    SafetensorsFile,
    TensorFile,
    TensorInfo,
    open_tensor_file,
    require_filled,
)

if TYPE_CHECKING:
    import torch

# Without one of these files a model or its bundle would differ: an unusable one is an error.
_NEEDED = re.compile(
    r".*\.(json|jinja|model|tiktoken)|(vocab|merges)[\w.-]*\.txt|(LICEN[CS]E|NOTICE).*"
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


class Checkpoint(Protocol):
    """A read-only set of named tensors; nothing is read before it is needed.

    `tensors` is in the order that is cheapest to read. The caller owns the memory that `load` and
    `blocks` return.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        ...

    @property
    def config(self) -> ModelConfig:
        """The model's configuration (`config.json`)."""
        ...

    @property
    def files(self) -> Mapping[str, ModelFile]:
        """The other files that are not weights (tokenizer, licence, ...), by file name."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU."""
        ...

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension, on the CPU."""
        ...


class FolderCheckpoint:
    """A model folder as `save_pretrained` writes it: `config.json` and one weight file or shards.

    Args:
        folder: the model's folder.
        config: its configuration, if it was read already.

    Raises:
        MissingWeightsError: if there are no weights, or if a shard of the index is missing.
        CorruptFileError: if a file cannot be read, or if index and shards contradict each other.
    """

    def __init__(self, folder: Path, config: ModelConfig | None = None) -> None:
        self.folder = folder
        self.config = config or read_config(folder / CONFIG_NAME)
        files = find_weight_files(folder)
        self._index = files.index
        self.weight_files = [require_filled(open_tensor_file(path)) for path in files.paths]
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
        missing = [name for name in files.tensor_names if name not in self._tensors]
        if missing:
            raise CorruptFileError(
                f"{self._index} lists {len(missing)} tensors that no shard holds: "
                f"{listed(missing)}.",
                next_step=SAVE_MODEL_AGAIN,
            )

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name, in the order of the files."""
        return self._tensors

    @cached_property
    def files(self) -> Mapping[str, ModelFile]:
        """The files that are neither weights nor `config.json`, by file name."""
        return describing_files(self.folder)

    def index_sha256(self) -> str | None:
        """The digest of the list of its tensors: of the index, or of its only file's header."""
        if self._index:
            return sha256_file(self._index)
        (only,) = self.weight_files
        return only.header_sha256 if isinstance(only, SafetensorsFile) else None

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU; the caller owns its memory."""
        return self._file_of[name].load(name)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension, read one at a time."""
        total = self._tensors[name].shape[0]
        for start in range(0, total, rows):
            yield self._file_of[name].load_rows(name, start, min(start + rows, total))


def describing_files(folder: Path) -> dict[str, ModelFile]:
    """The files of a folder that are neither weights nor `config.json`, by name.

    transformers keeps further chat templates in a subfolder, which is part of their names here.

    Raises:
        CorruptFileError: if a file that may be needed cannot be read, or links out of the folder.
    """
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in (*sorted(folder.iterdir()), *templates)
        if path.is_file()
        # Code is never run, so that it does not describe the model: the converter gives the folder
        # to transformers, which would import it.
        and path.suffix not in (*_WEIGHT_SUFFIXES, ".py")
        and not path.name.endswith((".index.json", ".partial"))
    }
    _require_readable(folder)
    for name, path in paths.items():
        if _NEEDED.fullmatch(name):
            require_inside(path, folder)
    return {
        name: ModelFile(path)
        for name, path in paths.items()
        if name != CONFIG_NAME and is_inside(path, folder)
    }


def _require_readable(folder: Path) -> None:
    """Refuse a file that is listed but cannot be read: another file would silently replace it.

    In the Hub cache this is a link to a file that was removed.
    """
    for path in sorted(folder.iterdir()):
        is_described = path.suffix in (".json", ".jinja", ".model")
        if is_described and not path.is_file() and not path.is_dir():
            what = "a broken link" if path.is_symlink() else "not a regular file"
            raise CorruptFileError(
                f"{path} is {what}.", next_step="Download the file again, or remove it."
            )


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a model folder.

    Attributes:
        paths: the files.
        index: the index that lists them; None for a single file.
        tensor_names: the tensors that the index lists.
    """

    paths: tuple[Path, ...]
    index: Path | None = None
    tensor_names: tuple[str, ...] = ()


def find_weight_files(folder: Path) -> WeightFiles:
    """The weight files of a model folder; of several formats the one that transformers reads.

    Raises:
        MissingWeightsError: with the names of the missing files.
        CorruptFileError: if a file of the index lies outside of the folder, also by a link.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return WeightFiles((require_inside(single, folder),))
        if index.is_file():
            return _read_index(require_inside(index, folder))
    raise MissingWeightsError(
        f"{folder} has a config.json, but neither model.safetensors nor an index of shards.",
        next_step="Save the weights into that folder, or name the folder that has them.",
    )


def _read_index(index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFileError(f"{index} has no `weight_map`.", next_step=SAVE_MODEL_AGAIN)
    names = sorted({str(name) for name in weight_map.values()})
    # A download from a stranger must not make ftpack read the rest of the disk.
    outside = [name for name in names if name in ("", ".", "..") or re.search(r"[/\\\0]", name)]
    if outside:
        raise CorruptFileError(
            f"{index} names {outside[0][:200]!r}, which is not a file in its folder.",
            next_step="Download the model again, from a source that you trust.",
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise MissingWeightsError(
            f"{index} names {len(names)} weight files, of which {len(missing)} are missing: "
            f"{listed(missing)}.",
            next_step="Finish the download, or save the model again.",
        )
    paths = tuple(require_inside(index.parent / name, index.parent) for name in names)
    return WeightFiles(paths, index, tuple(map(str, weight_map)))
