"""A checkpoint written in 4 bits by bitsandbytes, as transformers itself would quantize it."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import NonFiniteError, ToolchainError, UnsupportedError
from packager.files import write_json
from packager.merge.peft.layout import Layout, build_model
from packager.model.checkpoint import Checkpoint
from packager.model.tensor_file import TensorInfo
from packager.progress import Progress, Task
from packager.save.safetensors import write_tensors

if TYPE_CHECKING:
    import torch

# A shard is in memory until it is written: how long bitsandbytes' own records of a tensor are shows
# only when it is quantized, and a safetensors file begins with where everything is.
SHARD_BYTES = 10**9
# For each tensor: two code books, and a record in JSON.
_STATE_BYTES = 1024 + 64 + 256
_BLOCK = 64
_NESTED_BLOCK = 256


@dataclass(frozen=True)
class FourBitPlan:
    """What becomes of a checkpoint in 4 bits.

    Attributes:
        quantized: the checkpoint's tensors that are quantized: whether each is transposed first, as
            for a Conv1D, which the model loads as a linear layer.
        config: what `config.json` gets as `quantization_config`.
        size_bytes: of all tensors, an upper bound.
    """

    quantized: Mapping[str, bool]
    config: Mapping[str, object]
    size_bytes: int


def require_bitsandbytes() -> None:
    """See that bitsandbytes is installed, without importing it.

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
    """Ask transformers which layers it would load in 4 bits; no weight is read.

    Those are nf4 with double quantization; the rest (embeddings, output head, norms, stacked
    experts) stays as it is. What computes is the model's own element type.

    Args:
        checkpoint: what is written.

    Raises:
        UnsupportedError: if transformers has no such model, or quantizes nothing of it, or a layer
            whose weight the checkpoint keeps in several tensors.
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
            f"The checkpoint keeps {parameter} in another form than the model has it ({own}), in "
            "which it cannot be quantized.",
            next_step="Save it with --save merged_16bit, and let transformers quantize it.",
        )
    return own


def _bound(info: TensorInfo, quantized: Mapping[str, bool]) -> int:
    """The bytes that a tensor takes at most."""
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
    """Write a checkpoint by its plan into `model.safetensors`, or shards with an index.

    Memory holds one shard, and one tensor in 16 bits. Files get their names when they are whole.

    Args:
        checkpoint: what to write.
        plan: of `plan_four_bit`.
        folder: where to; it must exist.
        progress: gets bytes as they are read.
        shard_bytes: the size that a shard may reach.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
    """
    shards = _split(checkpoint, plan, shard_bytes)
    total_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    written_bytes = 0
    with progress.task("Quantizing to 4 bits", total_bytes) as task:
        for number, shard in enumerate(shards, start=1):
            end = "" if len(shards) == 1 else f"-{number:05}-of-{len(shards):05}"
            path = folder / f"model{end}.safetensors"
            tensors = _quantized_shard(checkpoint, plan, shard, task)
            write_tensors(tensors, path)
            paths.append(path)
            weight_map |= dict.fromkeys(tensors, path.name)
            written_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = folder / "model.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": written_bytes}, "weight_map": weight_map})
        paths.append(index)
    return paths


def _split(checkpoint: Checkpoint, plan: FourBitPlan, shard_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in checkpoint.tensors.values():
        size = _bound(info, plan.quantized)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += size
    return shards


def _quantized_shard(
    checkpoint: Checkpoint, plan: FourBitPlan, shard: Sequence[TensorInfo], task: Task
) -> dict[str, torch.Tensor]:
    import torch

    made: dict[str, torch.Tensor] = {}
    for info in shard:
        tensor = checkpoint.load(info.name)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"The merged tensor {info.name} holds NaN or Inf.",
                next_step="The training run diverged or overflowed; use an earlier checkpoint.",
            )
        if info.name in plan.quantized:
            is_transposed = plan.quantized[info.name]
            made |= _quantize(info.name, tensor.T if is_transposed else tensor)
        else:
            made[info.name] = tensor.contiguous()
        task.advance(info.size_bytes)
    return made


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
