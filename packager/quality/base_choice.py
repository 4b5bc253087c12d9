"""How near the merge is to what was trained, on a quantized base and on its 16-bit twin.

What was trained is the rounded weights of the base with the adapter's change. Merged into them, it
is rounded to 16 bits and then as the GGUF has it; merged into the twin, the change is added to
weights that it was not trained on. Both are measured, on a sample.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import FtpackError, UnsupportedError
from packager.gguf.convert import Conversion
from packager.gguf.quantize.quantizer import Quantize, load_quantizers
from packager.gguf.types import TypedQuant, tensor_bytes
from packager.model.checkpoint import Checkpoint
from packager.model.dequantize.dequantized import Dequantized
from packager.model.tensor_file import TensorInfo
from packager.package.prepare import merge_adapters
from packager.progress import Progress
from packager.quality.bnb_rounding import RoundedByBitsandbytes
from packager.quality.pair import Pair, find_pair
from packager.source.inputs import Inputs

if TYPE_CHECKING:
    import torch

SIXTEEN_BITS = "16 bits"
_NAMES = {"quantized": "the quantized base", "twin": "its 16-bit twin"}
# What is loaded and merged of the model, and how many rows of each weight are then compared.
_SAMPLE_ELEMENTS = 64 << 20
_SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Distance:
    """How far what is made is from what was trained: `||made - trained|| / ||trained||`.

    Attributes:
        form: `16 bits`, or a quant.
        quantized: merged into the quantized base.
        twin: merged into its 16-bit twin; None where that is not at hand.
    """

    form: str
    quantized: float
    twin: float | None


@dataclass(frozen=True)
class Nearness:
    """Both choices of a base, measured against what was trained.

    Attributes:
        used: `quantized` or `twin`.
        quantized_name: what the quantized base is called.
        is_estimated: whether the quantized weights were made of the twin's, as those of the
            quantized base itself were not at hand.
        weights: the names of the weights that were compared.
        distances: in 16 bits, and in each quant that is made.
    """

    used: str
    quantized_name: str
    is_estimated: bool
    weights: tuple[str, ...]
    distances: tuple[Distance, ...]

    def to_json(self) -> dict[str, object]:
        """The figures as JSON values."""
        return asdict(self)


def quant_types(
    conversion: Conversion, chosen: Sequence[TypedQuant]
) -> dict[str, Mapping[str, str]]:
    """What each of the checkpoint's tensors becomes in each quant, where the GGUF has it as it is.

    Gives GGML's types by quant, by the tensor's name in the checkpoint.
    """
    return {
        tensor.passes_from: {typed.quant.name: typed.types[tensor.name] for typed in chosen}
        for tensor in conversion.tensors
        if tensor.passes_from is not None and len(tensor.shape) == 2
    }


def measure_nearness(
    inputs: Inputs,
    checkpoint: Checkpoint,
    types: Mapping[str, Mapping[str, str]],
    device: str,
    progress: Progress,
) -> Nearness | None:
    """Measure a merge against what was trained, and tell it; None where no base is quantized.

    Args:
        inputs: source and base.
        checkpoint: the merge of them.
        types: the weights to choose from, each with GGML's type in each quant (see `quant_types`).
        device: where to merge.
        progress: told both figures, or why there are none.
    """
    pair = find_pair(inputs.base, inputs.adapters[0]) if inputs.base and inputs.adapters else None
    if pair is None:
        return None
    try:
        found = _measure(pair, inputs, checkpoint, types, device, progress)
    # The model can be made without knowing this.
    except FtpackError as error:
        why = f"{error.message} {error.next_step}".strip()
        progress.note(f"How near the merge is to what was trained is not measured: {why}")
        return None
    for line in _lines(found):
        progress.note(line)
    return found


def _measure(
    pair: Pair,
    inputs: Inputs,
    checkpoint: Checkpoint,
    types: Mapping[str, Mapping[str, str]],
    device: str,
    progress: Progress,
) -> Nearness:
    rounded = _rounded(pair)
    trained = merge_adapters(_InFp32(rounded), inputs, device)
    made: dict[str, Checkpoint] = {}
    if pair.is_twin_used:
        made = {"quantized": merge_adapters(rounded, inputs, device), "twin": checkpoint}
    else:
        made = {"quantized": checkpoint}
        if pair.twin is not None:
            made["twin"] = merge_adapters(pair.twin, inputs, device)
    candidates = [
        trained.tensors[name]
        for name in types
        if name in trained.tensors
        and rounded.is_packed(name)
        and trained.is_merged(name)
        and all(_has_shape(other, trained.tensors[name]) for other in made.values())
    ]
    sample = list(_sample(candidates))
    if not sample:
        raise UnsupportedError(
            "none of the weights that the adapter changes is both quantized and, as it is, in the "
            "GGUF."
        )
    distances = _distances(trained, made, {name: types[name] for name in sample}, progress)
    return Nearness(
        used="twin" if pair.is_twin_used else "quantized",
        quantized_name=pair.name,
        is_estimated=pair.quantized is None,
        weights=tuple(sample),
        distances=distances,
    )


def _rounded(pair: Pair) -> Dequantized | RoundedByBitsandbytes:
    """The base's weights as training saw them."""
    if pair.quantized is not None:
        return Dequantized(pair.quantized)
    if pair.settings is None or pair.twin is None:
        raise UnsupportedError(
            f"neither the weights of {pair.name} nor its config.json are at hand."
        )
    return RoundedByBitsandbytes(pair.twin, pair.settings)


def _has_shape(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    found = checkpoint.tensors.get(info.name)
    return found is not None and found.shape == info.shape


def _sample(candidates: Sequence[TensorInfo]) -> Iterator[str]:
    """Weights of every kind, of the first, middle and last layer in turn, up to a size in all."""
    kinds: dict[str, dict[int, TensorInfo]] = defaultdict(dict)
    for info in candidates:
        if match := re.search(r"\.(\d+)\.", info.name):
            kinds[info.name[match.end() :]][int(match[1])] = info
    left = _SAMPLE_ELEMENTS
    by_size = sorted(kinds.values(), key=lambda layers: -_elements(next(iter(layers.values()))))
    chosen: dict[str, None] = {}
    for turn in range(3):
        for index, layers in enumerate(by_size):
            numbers = sorted(layers)
            ends = (numbers[0], numbers[len(numbers) // 2], numbers[-1])
            info = layers[ends[(index + turn) % 3]]
            if info.name not in chosen and _elements(info) <= left:
                chosen[info.name] = None
                left -= _elements(info)
    if not chosen and by_size:  # each is larger than that
        chosen[min(by_size[-1].values(), key=_elements).name] = None
    yield from chosen


def _elements(info: TensorInfo) -> int:
    return math.prod(info.shape)


def _distances(
    trained: Checkpoint,
    made: Mapping[str, Checkpoint],
    types: Mapping[str, Mapping[str, str]],
    progress: Progress,
) -> tuple[Distance, ...]:
    """The distance of each choice in each form, every weight counting by its size."""
    import numpy as np

    quantizers = load_quantizers({kind for forms in types.values() for kind in forms.values()},
                                 progress)  # fmt: skip
    squares: dict[tuple[str, str], float] = defaultdict(float)
    norm = 0.0
    for name, forms in types.items():
        wanted = _rows(trained, name)
        if not np.isfinite(wanted).all():
            raise UnsupportedError(f"{name} holds NaN or Inf.")
        share = trained.tensors[name].shape[0] / len(wanted)
        norm += share * float(np.square(wanted, dtype=np.float64).sum())
        for choice, checkpoint in made.items():
            rows = _rows(checkpoint, name)
            squares[SIXTEEN_BITS, choice] += share * _squared(rows - wanted)
            for quant, kind in forms.items():
                back = _quantized(rows, kind, quantizers[kind])
                squares[quant, choice] += share * _squared(back - wanted)
    if not norm:
        raise UnsupportedError("the weights that were sampled are all zero.")
    return tuple(
        Distance(
            form,
            math.sqrt(squares[form, "quantized"] / norm),
            math.sqrt(squares[form, "twin"] / norm) if "twin" in made else None,
        )
        for form in dict.fromkeys(form for form, _ in squares)
    )


def _squared(difference: Any) -> float:
    import numpy as np

    return float(np.square(difference, dtype=np.float64).sum())


def _rows(checkpoint: Checkpoint, name: str) -> Any:
    """Rows from all over a weight, in fp32."""
    weight = checkpoint.load(name)
    step = max(1, weight.shape[0] // _SAMPLE_ROWS)
    return weight[::step].float().contiguous().numpy()


def _quantized(rows: Any, kind: str, quantize: Quantize) -> Any:
    """fp32 `[rows, columns]` as a GGUF of this type gives them back."""
    import numpy as np

    quants: Any = importlib.import_module("gguf.quants")
    gguf: Any = importlib.import_module("gguf")
    packed = np.zeros((len(rows), tensor_bytes(rows.shape[1], kind)), np.uint8)
    quantize(rows, packed)
    return quants.dequantize(packed, gguf.GGMLQuantizationType[kind])


class _InFp32:
    """A checkpoint with every float in fp32: what is merged into it is not rounded to 16 bits."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(info, dtype="F32") if info.dtype in ("BF16", "F16") else info
            for name, info in base.tensors.items()
        }

    @property
    def files(self) -> Mapping[str, Path]:
        return self._base.files

    def load(self, name: str) -> torch.Tensor:
        return self._base.load(name).to(self.tensors[name].torch_dtype)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        for block in self._base.blocks(name, rows):
            yield block.to(self.tensors[name].torch_dtype)


def _lines(found: Nearness) -> Iterator[str]:
    """What is said: both figures, which base is nearer, which is used, and what that means not."""
    how = " (estimated, by rounding the twin's)" if found.is_estimated else ""
    figures = ", ".join(map(_figures, found.distances))
    yield (
        f"Distance from what was trained, the quantized weights{how} with the adapter's change "
        f"(relative RMS of {len(found.weights)} weights): {figures}"
    )
    nearer = {
        "quantized" if distance.twin is None or distance.quantized <= distance.twin else "twin"
        for distance in found.distances
    }
    if any(distance.twin is None for distance in found.distances):
        yield "Its 16-bit twin is not on this machine, so that there is nothing to compare it with"
        return
    which = _NAMES[nearer.pop()] if len(nearer) == 1 else "now the one, now the other"
    yield (
        f"Nearer to what was trained is {which}; used is {_NAMES[found.used]}. That does not tell "
        "which answers better: the twin has what the rounding lost"
    )


def _figures(distance: Distance) -> str:
    with_twin = "" if distance.twin is None else f", {distance.twin:.2%} on its 16-bit twin"
    return f"in {distance.form} {distance.quantized:.2%} on the quantized base{with_twin}"
