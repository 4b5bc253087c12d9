"""A checkpoint, saved in 4 bits by bitsandbytes, as transformers itself would quantize it."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import ToolchainError, UnsupportedError
from packager.merge.peft.layout import Layout, build_model
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo
from packager.progress import Progress, Task
from packager.save.safetensors import write_tensors
from packager.save.shard_files import require_finite, split_into_shards, write_index

if TYPE_CHECKING:
    import torch

# A shard is in memory until it is written: the length of bitsandbytes' own records of a tensor is
# known only once it is quantized, and a safetensors file begins with the offsets of everything.
SHARD_BYTES = 10**9
# Each tensor has two code books, and a record in JSON.
_STATE_BYTES = 1024 + 64 + 256
_BLOCK = 64
_NESTED_BLOCK = 256


@dataclass(frozen=True)
class FourBitPlan:
    """How a checkpoint is saved in 4 bits.

    Attributes:
        quantized: the checkpoint's tensors that are quantized, and whether each is transposed
            first, as for a Conv1D, which the model loads as a linear layer.
        config: the `quantization_config` of `config.json`.
        size_bytes: of all tensors, an upper bound.
    """

    quantized: Mapping[str, bool]
    config: Mapping[str, object]
    size_bytes: int


def require_bitsandbytes() -> None:
    """Require that bitsandbytes is installed, without importing it.

    Raises:
        ToolchainError: with the command that installs it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ToolchainError(
            "merged_4bit is quantized by bitsandbytes, which is not installed.",
            next_step="Install it: pip install 'ftpack[bitsandbytes]' (or pip install "
            "bitsandbytes).",
        )


def plan_four_bit(checkpoint: Checkpoint) -> FourBitPlan:
    """How to save a checkpoint in 4 bits: the layers that transformers would load so.

    These are saved as nf4 with double quantization; the rest (embeddings, output head, norms,
    stacked experts) stays as it is. They compute in the model's own element type. No weight is
    read.

    Args:
        checkpoint: what to save.

    Raises:
        UnsupportedError: if transformers has no such model, or quantizes none of its layers, or
            one whose weight the checkpoint keeps in several tensors.
    """
    import bitsandbytes  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from transformers import BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers import AutoHfQuantizer

    layout = Layout(checkpoint.tensors, checkpoint.config)
    model = build_model(checkpoint.config)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=model.dtype if model.dtype.itemsize == 2 else "float32",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(
            model=model, device_map=None
        )
    quantized = {
        _own_tensor(layout, f"{name}.weight"): module.source_cls is Conv1D
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    if not quantized:
        raise UnsupportedError(
            f"transformers finds no layer in {checkpoint.config.path} to load in 4 bits.",
            next_step="Save it with --save merged_16bit.",
        )
    sizes = (_bound(info, quantized) for info in checkpoint.tensors.values())
    return FourBitPlan(quantized, config.to_dict(), sum(sizes))


def _own_tensor(layout: Layout, parameter: str) -> str:
    """The checkpoint's one tensor that is a layer's weight, unchanged."""
    own = layout.stored_tensor(parameter)
    if layout.siblings([parameter]) != {parameter} or layout.tensors[own].shape != tuple(
        layout.meta(parameter).shape
    ):
        raise UnsupportedError(
            f"The checkpoint keeps {parameter} in another form than the model ({own}), which "
            "cannot be quantized.",
            next_step="Save it with --save merged_16bit, and let transformers quantize it.",
        )
    return own


def _bound(info: TensorInfo, quantized: Mapping[str, bool]) -> int:
    """The largest number of bytes that a tensor can take."""
    if info.name not in quantized:
        return info.size_bytes
    elements = math.prod(info.shape)
    blocks = -(-elements // _BLOCK)
    return -(-elements // 2) + blocks + 4 * -(-blocks // _NESTED_BLOCK) + _STATE_BYTES


def save_four_bit(
    checkpoint: Checkpoint,
    plan: FourBitPlan,
    folder: Path,
    progress: Progress,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write a checkpoint by its plan to `model.safetensors`, or to shards with an index.

    Memory holds one shard, and one tensor in 16 bits. A file gets its name when it is complete.

    Args:
        checkpoint: what to write.
        plan: from `plan_four_bit`.
        folder: where to; it must exist.
        progress: gets bytes as they are read.
        shard_bytes: the size that a shard may reach.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
    """
    shards = split_into_shards(
        checkpoint.tensors.values(), lambda info: _bound(info, plan.quantized), shard_bytes
    )
    total_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    written_bytes = 0
    with progress.task("Quantizing to 4 bits", total_bytes) as task:
        for name, shard in shards.items():
            tensors = _quantized_shard(checkpoint, plan, shard, task)
            write_tensors(tensors, folder / name)
            paths.append(folder / name)
            weight_map |= dict.fromkeys(tensors, name)
            written_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        paths.append(write_index(folder, weight_map, written_bytes))
    return paths


def _quantized_shard(
    checkpoint: Checkpoint, plan: FourBitPlan, shard: Sequence[TensorInfo], task: Task
) -> dict[str, torch.Tensor]:
    quantized: dict[str, torch.Tensor] = {}
    for info in shard:
        tensor = checkpoint.load(info.name)
        require_finite(info.name, tensor)
        if info.name in plan.quantized:
            is_transposed = plan.quantized[info.name]
            quantized |= _quantize(info.name, tensor.T if is_transposed else tensor)
        else:
            quantized[info.name] = tensor.contiguous()
        task.advance(info.size_bytes)
    return quantized


def _quantize(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight `[out_features, in_features]` as bitsandbytes saves its `Linear4bit`.

    The tensors are `NAME` (uint8, two weights in each), `NAME.absmax`, `NAME.quant_map`,
    `NAME.nested_absmax`, `NAME.nested_quant_map` and `NAME.quant_state.bitsandbytes__nf4`.
    """
    import bitsandbytes
    import torch

    with torch.inference_mode(False), torch.no_grad():
        packed: Any = bitsandbytes.nn.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to("cpu")
        state = packed.quant_state.as_dict(packed=True)
    return {name: packed.data, **{f"{name}.{key}": value for key, value in state.items()}}
