"""What a run would make and what it would cost, for showing."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.gguf.quants import DEFAULT_QUANT
from packager.gguf.run_memory import DEFAULT_CONTEXT, estimate_run_memory
from packager.gguf.types import TypedQuant
from packager.gguf.write import AHEAD_ELEMENTS
from packager.model.dequantize.formats import quantization_settings
from packager.package.package import Package, PlannedGguf

# Measured on Linux: Python with torch and transformers imported, a converted vocabulary of 128k
# tokens, and the kernels.
_PROCESS_BYTES = 1150 << 20
# What PEFT's import, the model's classes, and a model's module tree with PEFT's layers add to that.
_PEFT_BYTES = 350 << 20


@dataclass(frozen=True)
class PlannedQuant:
    """One GGUF of this model.

    Attributes:
        quant: llama.cpp's name.
        file_name: the GGUF's name in the bundle.
        size_bytes: the file's size without its metadata.
        run_memory_bytes: the weights, and a key-value cache of the plan's `context_length`.
        bits_per_weight: the average over all weights.
        fallbacks: one line for each tensor that gets another type than the one meant for it.
        needs_imatrix: whether it cannot be made without an importance matrix.
        is_chosen: whether it will be made.
        is_default: whether it is made when no quant is named.
    """

    quant: str
    file_name: str
    size_bytes: int
    run_memory_bytes: int
    bits_per_weight: float
    fallbacks: tuple[str, ...]
    needs_imatrix: bool
    is_chosen: bool
    is_default: bool


@dataclass(frozen=True)
class PlannedProjector:
    """The `mmproj` of a multimodal model, which every quant uses.

    Attributes:
        file_name: its name in the bundle.
        size_bytes: its size without its metadata.
    """

    file_name: str
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that a run would do, known without reading a weight.

    Attributes:
        name: the model's name.
        out: the bundle's folder.
        source: what was chosen as source, and why.
        base: what was chosen as base, and why; None for a full model.
        architecture: GGUF's name of it.
        parameters: the number of weights.
        merged_tensors: how many modules the adapters change.
        device: where merging happens.
        quants: the quants that were asked about.
        projector: the file beside them for a multimodal model.
        prompt: the decision on the prompt, in a sentence.
        stops: the stop strings that will be sent.
        context_length: the context in tokens that `run_memory_bytes` is computed for.
        read_bytes: how much of the weights is read, once.
        write_bytes: how much is written to `out`.
        memory_bytes: an estimate of the process's peak memory.
    """

    name: str
    out: Path
    source: str
    base: str | None
    architecture: str
    parameters: int
    merged_tensors: int
    device: str
    quants: tuple[PlannedQuant, ...]
    projector: PlannedProjector | None
    prompt: str
    stops: tuple[str, ...]
    context_length: int
    read_bytes: int
    write_bytes: int
    memory_bytes: int

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values."""
        return dataclasses.asdict(self) | {"out": str(self.out)}


def plan_of(package: Package, quants: Sequence[TypedQuant]) -> Plan:
    """The plan of a package.

    Args:
        package: everything that was decided.
        quants: the quants to list, chosen or not.
    """
    inputs, text = package.inputs, package.text
    projector = package.projector
    conversions = (text, *([projector.conversion] if projector else ()))
    parameters = sum(tensor.elements for item in conversions for tensor in item.tensors)
    return Plan(
        name=package.name,
        out=package.out,
        source="; ".join(source.reason for source in inputs.sources),
        base=inputs.base.reason if inputs.base else None,
        architecture=text.architecture,
        parameters=parameters,
        merged_tensors=package.model.facts.modules,
        device=package.merge_onto.options.device,
        quants=tuple(_planned(package, typed) for typed in quants),
        projector=_planned_projector(projector) if projector else None,
        prompt=package.prompt.decision.reason,
        stops=package.prompt.modelfile.stops,
        context_length=package.context_length or DEFAULT_CONTEXT,
        read_bytes=sum(info.size_bytes for info in inputs.model.tensors.values()),
        write_bytes=sum(file.typed.size_bytes for file in package.files),
        memory_bytes=_estimate_memory(package),
    )


def _planned_projector(file: PlannedGguf) -> PlannedProjector:
    return PlannedProjector(file.file_name, file.typed.size_bytes)


def _planned(package: Package, typed: TypedQuant) -> PlannedQuant:
    beside_bytes = package.projector.typed.size_bytes if package.projector else 0
    key_values = {key: item.value for key, item in package.text.key_values.items()}
    return PlannedQuant(
        quant=typed.quant.name,
        file_name=package.file_name(typed.quant),
        size_bytes=typed.size_bytes,
        run_memory_bytes=estimate_run_memory(
            typed.size_bytes + beside_bytes,
            key_values,
            package.context_length or DEFAULT_CONTEXT,
        ),
        bits_per_weight=typed.bits_per_weight,
        fallbacks=typed.fallbacks,
        needs_imatrix=typed.needs_imatrix,
        is_chosen=typed.quant in [file.typed.quant for file in package.ggufs],
        is_default=typed.quant.name == DEFAULT_QUANT,
    )


def _estimate_memory(package: Package) -> int:
    """The peak memory of packaging: it depends on the largest tensors, not on the model's size.

    Three of the largest tensor that is merged, dequantized or computed as a whole, in 16 bits; what
    merging holds from beginning to end; and what is read ahead for each quant.
    """
    tensors = [tensor for file in package.files for tensor in file.conversion.tensors]
    computed = max((2 * t.elements for t in tensors if t.passes_from is None), default=0)
    return (
        _PROCESS_BYTES
        + (_PEFT_BYTES if "peft" in sys.modules else 0)
        + package.model.facts.held_bytes
        + 3 * max(_largest_at_once(package), computed)
        + (2 + len(package.ggufs)) * AHEAD_ELEMENTS
    )


def _largest_at_once(package: Package) -> int:
    """The size of the largest tensor, or module, that is merged or dequantized as a whole."""
    largest = package.model.facts.largest_bytes
    model = package.inputs.model
    if quantization_settings(model.config) is None:
        return largest
    dequantized = [
        info for info in package.model.tensors.values() if model.tensors.get(info.name) != info
    ]
    # Stacks of experts are dequantized one by one.
    return max([largest, *(info.size_bytes for info in dequantized if len(info.shape) == 2)])
