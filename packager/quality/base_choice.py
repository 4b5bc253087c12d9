"""The distance of a merge from the trained model, on a quantized base and on its 16-bit original.

The trained model is the base's rounded weights plus the adapter's change. Merged into the quantized
base, this sum is rounded to 16 bits and then to the GGUF's type; merged into the 16-bit original,
the change is added to weights that it was not trained on. Both are measured on a sample.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from packager.errors import FtpackError, UnsupportedError
from packager.gguf.convert import Conversion
from packager.gguf.quantize.quantizer import Quantize, load_quantizers
from packager.gguf.types import TypedQuant, tensor_bytes
from packager.merge.merged import Merged
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.dequantize.dequantized import Dequantized
from packager.model.derived import Derived
from packager.model.tensor_file import TensorInfo
from packager.progress import Progress
from packager.quality.bnb_rounding import RoundedByBitsandbytes
from packager.quality.pair import Pair, find_pair
from packager.source.base.find import Base

if TYPE_CHECKING:
    import torch

SIXTEEN_BITS = "16 bits"
# The keys of the two bases in JSON, and their names for people.
_QUANTIZED, _ORIGINAL = "quantized", "twin"
_NAMES = {_QUANTIZED: "the quantized base", _ORIGINAL: "its 16-bit original"}
# How much of the model is loaded and merged, and how many rows of each weight are compared.
_SAMPLE_ELEMENTS = 64 << 20
_SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Distance:
    """The distance from the trained model, `||merged - trained|| / ||trained||`.

    Attributes:
        form: `16 bits`, or a quant.
        quantized: of the merge into the quantized base.
        twin: of the merge into its 16-bit original; None if that is not available.
    """

    form: str
    quantized: float
    twin: float | None


@dataclass(frozen=True)
class BaseChoice:
    """Both choices of a base, with their distances from the trained model.

    Attributes:
        used: `quantized`, or `twin` for the 16-bit original.
        quantized_name: the name of the quantized base.
        is_estimated: whether the quantized weights were computed from the 16-bit original's, since
            those of the quantized base were not available.
        weights: the names of the weights that were compared.
        distances: in 16 bits, and in each quant that is built.
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
    """GGML's type of a matrix in each quant, by the matrix's name in the checkpoint.

    Includes the matrices whose values the converter does not change.
    """
    return {
        tensor.passes_from: {typed.quant.name: typed.types[tensor.name] for typed in chosen}
        for tensor in conversion.tensors
        if tensor.passes_from is not None and len(tensor.shape) == 2
    }


def measure_base_choice(
    base: Base | None,
    adapters: Sequence[Adapter],
    merge_onto: Callable[[Checkpoint], Merged],
    merged: Checkpoint,
    types: Mapping[str, Mapping[str, str]],
    progress: Progress,
) -> BaseChoice | None:
    """The distances of both bases from the trained model, which are also reported.

    Gives None if no base is quantized by bitsandbytes. If they cannot be measured, it also gives
    None and reports the reason: nothing depends on them.

    Args:
        base: the base that is used; None for a full model without adapters.
        adapters: the run's adapters.
        merge_onto: merges the run's adapters into a plain checkpoint.
        merged: the merge into the base that is used.
        types: the weights to choose from, each with GGML's type in each quant (see `quant_types`).
        progress: receives the distances.
    """
    pair = find_pair(base, adapters[0]) if base is not None and adapters else None
    if pair is None:
        return None
    try:
        choice = _measure(pair, merge_onto, merged, types, progress)
    except FtpackError as error:
        why = f"{error.message} {error.next_step}".strip()
        progress.note(f"The distance from the trained model is not measured: {why}")
        return None
    for line in _lines(choice):
        progress.note(line)
    return choice


def _measure(
    pair: Pair,
    merge_onto: Callable[[Checkpoint], Merged],
    merged: Checkpoint,
    types: Mapping[str, Mapping[str, str]],
    progress: Progress,
) -> BaseChoice:
    rounded = _rounded(pair)
    trained = merge_onto(_InFp32(rounded))
    merges: dict[str, Checkpoint] = {}
    if pair.is_full_precision_used:
        merges = {_QUANTIZED: merge_onto(rounded), _ORIGINAL: merged}
    else:
        merges = {_QUANTIZED: merged}
        if pair.full_precision is not None:
            merges[_ORIGINAL] = merge_onto(pair.full_precision)
    candidates = [
        trained.tensors[name]
        for name in types
        if name in trained.tensors
        and rounded.is_packed(name)
        and name in trained.facts.merged_names
        and all(_has_shape(other, trained.tensors[name]) for other in merges.values())
    ]
    sample = list(_sample(candidates))
    if not sample:
        raise UnsupportedError(
            "none of the weights that the adapter changes is both quantized and unchanged by the "
            "converter."
        )
    distances = _distances(trained, merges, {name: types[name] for name in sample}, progress)
    return BaseChoice(
        used=_ORIGINAL if pair.is_full_precision_used else _QUANTIZED,
        quantized_name=pair.name,
        is_estimated=pair.quantized is None,
        weights=tuple(sample),
        distances=distances,
    )


def _rounded(pair: Pair) -> Dequantized | RoundedByBitsandbytes:
    """The base with its weights as in the training."""
    if pair.quantized is not None:
        return Dequantized(pair.quantized)
    if pair.settings is None or pair.full_precision is None:
        raise UnsupportedError(
            f"neither the weights nor the config.json of {pair.name} are on this machine."
        )
    return RoundedByBitsandbytes(pair.full_precision, pair.settings)


def _has_shape(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    other = checkpoint.tensors.get(info.name)
    return other is not None and other.shape == info.shape


def _sample(candidates: Sequence[TensorInfo]) -> Iterator[str]:
    """Weights of every kind from the first, middle and last layer, up to a total size."""
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
    if not chosen and by_size:  # each is larger than the total
        chosen[min(by_size[-1].values(), key=_elements).name] = None
    yield from chosen


def _elements(info: TensorInfo) -> int:
    return math.prod(info.shape)


def _distances(
    trained: Checkpoint,
    merges: Mapping[str, Checkpoint],
    types: Mapping[str, Mapping[str, str]],
    progress: Progress,
) -> tuple[Distance, ...]:
    """The distances of each choice in each form; every weight counts by its size."""
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
        for choice, checkpoint in merges.items():
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
            math.sqrt(squares[form, _QUANTIZED] / norm),
            math.sqrt(squares[form, _ORIGINAL] / norm) if _ORIGINAL in merges else None,
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
    """fp32 `[rows, columns]`, quantized to a type of GGML and dequantized."""
    import numpy as np

    quants: Any = importlib.import_module("gguf.quants")
    gguf: Any = importlib.import_module("gguf")
    packed = np.zeros((len(rows), tensor_bytes(rows.shape[1], kind)), np.uint8)
    quantize(rows, packed)
    return quants.dequantize(packed, gguf.GGMLQuantizationType[kind])


class _InFp32(Derived):
    """A checkpoint with every float in fp32, so that a merge into it is not rounded to 16 bits."""

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self._tensors = {
            name: replace(info, dtype="F32") if info.dtype in ("BF16", "F16") else info
            for name, info in base.tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def load(self, name: str) -> torch.Tensor:
        return self.base.load(name).to(self._tensors[name].torch_dtype)

    def blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        for block in self.base.blocks(name, rows):
            yield block.to(self._tensors[name].torch_dtype)


def _lines(choice: BaseChoice) -> Iterator[str]:
    """The report: both distances, which base is nearer, which one is used, and what that means."""
    how = " (estimated, by rounding the original's)" if choice.is_estimated else ""
    figures = ", ".join(map(_figures, choice.distances))
    yield (
        f"Distance from the trained model, the quantized weights{how} plus the adapter's change "
        f"(relative RMS of {len(choice.weights)} weights): {figures}"
    )
    nearer = {
        _QUANTIZED if distance.twin is None or distance.quantized <= distance.twin else _ORIGINAL
        for distance in choice.distances
    }
    if any(distance.twin is None for distance in choice.distances):
        yield "Its 16-bit original is not on this machine, so that the two cannot be compared"
        return
    which = _NAMES[nearer.pop()] if len(nearer) == 1 else "sometimes the one, sometimes the other"
    yield (
        f"Nearer to the trained model is {which}; ftpack uses {_NAMES[choice.used]}. This does not "
        "show which one answers better: the original has what the rounding lost"
    )


def _figures(distance: Distance) -> str:
    original = "" if distance.twin is None else f", {distance.twin:.2%} on {_NAMES[_ORIGINAL]}"
    return f"in {distance.form} {distance.quantized:.2%} on {_NAMES[_QUANTIZED]}{original}"
