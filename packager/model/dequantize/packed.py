"""A weight that is stored as several tensors of a quantized checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packager.errors import USE_16_BIT_ORIGINAL, CorruptFileError, UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from packager.model.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch

# Architectures whose linear layers are transformers' Conv1D, stored as `[in_features,
# out_features]`. Quantizers turn them into ordinary linear layers, `[out_features, in_features]`.
_CONV1D = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"),
    "openai-gpt": ("c_attn", "c_proj", "c_fc"),
}
# Quantized checkpoints store these for activations and caches; a plain model does not use them.
_OF_ACTIVATIONS = (
    ".activation_scale", ".input_global_scale", ".input_scale", ".input_scale_ub",
    ".input_zero_point", ".k_scale", ".output_scale", ".output_zero_point", ".q_scale",
    ".qscale_act", ".v_scale",
)  # fmt: skip


SAVE_AGAIN_OR_USE_16_BIT = (
    "Download or save the model again, or use its 16-bit original with --base PATH_OR_ID."
)


@dataclass(frozen=True)
class PackedWeight:
    """One weight of the plain model, and the tensors that it is computed from.

    Attributes:
        info: the plain weight's name, shape and element type.
        parts: the names of the checkpoint's tensors, by their role in the format.
        dequantize: computes the weight from the parts, in an element type of its choice.
        is_by_slice: whether slices of the parts' first dimension give slices of the weight's.
    """

    info: TensorInfo
    parts: Mapping[str, str]
    dequantize: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    is_by_slice: bool = False


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint is quantized.

    Attributes:
        label: the format for people, such as `nf4`.
        weights: every packed weight.
    """

    label: str
    weights: tuple[PackedWeight, ...]


@dataclass(frozen=True)
class QuantizedModel:
    """A checkpoint with the settings of its quantization.

    Attributes:
        checkpoint: the quantized tensors.
        settings: `quantization_config`.
        dtype: the element type to dequantize to, by its name in safetensors.
    """

    checkpoint: FolderCheckpoint
    settings: Mapping[str, object]
    dtype: str

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The quantized tensors, by name."""
        return self.checkpoint.tensors

    def plain(self, name: str, shape: Iterable[int]) -> TensorInfo:
        """The facts about a weight of the plain model."""
        return TensorInfo(name, tuple(shape), self.dtype)

    def is_conv1d(self, module: str) -> bool:
        """Whether the plain model stores this module's weight transposed."""
        ends = _CONV1D.get(str(self.checkpoint.config.values.get("model_type")), ())
        return module.rpartition(".")[2] in ends

    def refuse(self, what: str) -> UnsupportedError:
        """The error for an unsupported variant of a format."""
        return UnsupportedError(
            f"{self.checkpoint.config.path}: `quantization_config` has {what}, which "
            "ftpack does not dequantize.",
            next_step=USE_16_BIT_ORIGINAL,
        )

    def damaged(self, name: str, why: str) -> CorruptFileError:
        """The error for a tensor that is not valid in its format."""
        return CorruptFileError(
            f"The quantized weight {name!r} in {self.checkpoint.folder} {why}.",
            next_step=SAVE_AGAIN_OR_USE_16_BIT,
        )


def is_of_activations(name: str) -> bool:
    """Whether a tensor of a quantized checkpoint, by its name, does not belong to a weight."""
    return name.endswith(_OF_ACTIVATIONS)


def require_library(module: str, extra: str, label: str) -> None:
    """Check that an optional library is installed, without importing it.

    Raises:
        UnsupportedError: with the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise UnsupportedError(
            f"The model's weights are quantized ({label}), and dequantizing them needs {extra}, "
            "which is not installed.",
            next_step=f"pip install 'ftpack[{extra}]', or name the 16-bit model with --base.",
        )
