"""A checkpoint that wraps another and changes some of it."""

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
    """A checkpoint that passes on everything from another, except what a subclass overrides.

    Args:
        base: the wrapped checkpoint; subclasses find it as `base`.
        config: the configuration of this checkpoint; None for that of the wrapped one.
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
        """The files of the wrapped checkpoint."""
        return self.base.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors of the wrapped checkpoint."""
        return self.base.tensors

    def load(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU; the caller owns its memory."""
        return self.base.load(name)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """One tensor in pieces of `rows` slices of its first dimension."""
        return self.base.blocks(name, rows)
