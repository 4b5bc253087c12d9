"""A checkpoint over another: what a subclass does not change passes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from packager.model.checkpoint import Checkpoint
from packager.model.config import ModelConfig
from packager.model.model_file import ModelFile
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch


class Derived:
    """A checkpoint whose tensors, files and configuration are another one's, unless changed.

    Args:
        base: the checkpoint below; subclasses find it as `base`.
        config: what `config.json` says of this one; None for what it says of the one below.
    """

    def __init__(self, base: Checkpoint, config: ModelConfig | None = None) -> None:
        self.base = base
        self._config = config

    @property
    def config(self) -> ModelConfig:
        """The configuration of this checkpoint."""
        return self._config or self.base.config

    @property
    def files(self) -> Mapping[str, ModelFile]:
        """The files of the checkpoint below."""
        return self.base.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors of the checkpoint below."""
        return self.base.tensors

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU, in memory of its own."""
        return self.base.load(name)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension."""
        return self.base.blocks(name, rows)
