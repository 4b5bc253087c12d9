"""A checkpoint: named tensors that are read one at a time, and the files that describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from packager.errors import CorruptFileError, MissingWeightsError
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

# What a model or its bundle would be another without: never left out in silence.
_NEEDED = re.compile(
    r".*\.(json|jinja|model|tiktoken)|(vocab|merges)[\w.-]*\.txt|(LICEN[CS]E|NOTICE).*"
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


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
    def config(self) -> ModelConfig:
        """What `config.json` says of these tensors."""
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
    """A model folder as `save_pretrained` writes it: `config.json`, and one weight file or shards.

    Args:
        folder: where it is.
        config: its configuration, if that was read already.

    Raises:
        MissingWeightsError: if there are no weights, or a shard that the index names is not there.
        CorruptFileError: if a file cannot be read, or shards and index do not agree.
    """

    def __init__(self, folder: Path, config: ModelConfig | None = None) -> None:
        self.folder = folder
        self.config = config or read_config(folder / CONFIG_NAME)
        paths, self._index = find_weight_files(folder)
        self.weight_files = [require_filled(open_tensor_file(path)) for path in paths]
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
        listed = read_json(self._index).get("weight_map") if self._index else None
        names = listed if isinstance(listed, dict) else {}
        missing = [name for name in names if name not in self._tensors]
        if missing:
            raise CorruptFileError(
                f"{self._index} lists {len(missing)} tensors that no shard holds: "
                f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}.",
                next_step="Download or save the model again: index and shards do not agree.",
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
        """The digest of what says which tensors it has: the index, or its only file's header."""
        if self._index:
            return sha256_file(self._index)
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


def describing_files(folder: Path) -> dict[str, ModelFile]:
    """The plain files of a folder that are neither weights nor `config.json`, by name.

    transformers keeps further chat templates in a folder inside: their names begin with it.

    Raises:
        CorruptFileError: if one that may be needed cannot be read, or leads out of the folder.
    """
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in (*sorted(folder.iterdir()), *templates)
        if path.is_file()
        # Code is never run, and so it is no part of what describes a model: the converter hands
        # the folder to transformers, which would import it.
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


def find_weight_files(folder: Path) -> tuple[list[Path], Path | None]:
    """The weight files of a model folder, and the index that lists them; None for a single file.

    Where there are several, those that transformers reads.

    Raises:
        MissingWeightsError: naming the files that should be there.
        CorruptFileError: if the index names a file outside of the folder, or a link leads there.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return [require_inside(single, folder)], None
        if index.is_file():
            require_inside(index, folder)
            return [require_inside(path, folder) for path in _indexed_files(index)], index
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
