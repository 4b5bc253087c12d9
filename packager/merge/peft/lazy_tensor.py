"""A tensor of an adapter's file that is read when the module it belongs to is merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """What a tensor is made of. PEFT can hand it on under another name, but not compute with it.

    Attributes:
        shape: its dimensions.
        dtype: its element type.
        load: its values, in memory of their own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]


def stored(file: TensorFile, name: str) -> StoredTensor:
    """A tensor as it is in a file."""
    info = file.tensors[name]
    return StoredTensor(info.shape, info.torch_dtype, partial(file.load, name))


def loaded(value: StoredTensor | torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    return value.load() if isinstance(value, StoredTensor) else value
