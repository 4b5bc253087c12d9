"""A tensor of an adapter's file that is read when the module that it belongs to is merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor's shape and dtype, and how to read it.

    PEFT can pass it on under another name, but not compute with it.

    Attributes:
        shape: its dimensions.
        dtype: its element type.
        load: gives its values, in memory of their own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]


def lazy_tensor(file: TensorFile, name: str) -> LazyTensor:
    """A tensor of a file, not read yet."""
    info = file.tensors[name]
    return LazyTensor(info.shape, info.torch_dtype, partial(file.load, name))


def as_tensor(value: LazyTensor | torch.Tensor) -> torch.Tensor:
    """The tensor itself; a lazy one is read."""
    return value.load() if isinstance(value, LazyTensor) else value
