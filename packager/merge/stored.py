"""A tensor of an adapter's file that is read when the module it belongs to is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packager.checkpoint import TensorFile

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Where a tensor is. PEFT can hand it on under another name, and can not compute with it.

    Attributes:
        file: the adapter's tensors.
        name: the tensor's name there.
    """

    file: TensorFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.file.tensors[self.name].shape

    def load(self) -> torch.Tensor:
        """Its values, in memory of their own."""
        return self.file.load(self.name)


def loaded(value: StoredTensor | torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    return value.load() if isinstance(value, StoredTensor) else value
