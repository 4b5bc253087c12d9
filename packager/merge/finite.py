"""A tensor of an adapter, read and refused if it holds NaN or Inf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.errors import USE_EARLIER_CHECKPOINT, NonFiniteError
from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch


def load_finite(weights: TensorFile, name: str) -> torch.Tensor:
    """One tensor of an adapter's file.

    Raises:
        NonFiniteError: if it holds NaN or Inf, naming it.
    """
    import torch

    tensor = weights.load(name)
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise NonFiniteError(
            f"The adapter's tensor {name!r} in {weights.path} has NaN or Inf.",
            next_step=USE_EARLIER_CHECKPOINT,
        )
    return tensor
