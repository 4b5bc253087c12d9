"""What will be made and what it costs, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packager.gguf.write import AHEAD_ELEMENTS

# Measured on Linux: Python with torch and transformers imported, a converted vocabulary of 128k
# tokens, and the kernels.
_PROCESS_BYTES = 1150 << 20
# What PEFT's import, the model's classes, and a model's module tree with PEFT's layers add to that.
_PEFT_BYTES = 350 << 20
# The context that Ollama gives a model which asks for none, on a machine without a large GPU.
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Request:
    """What the user wants made.

    Attributes:
        source: an adapter, a Trainer's output, a full model: a folder, a Hub id, or ModelScope's
            (`modelscope://ORG/NAME`); so are `adapters` and `base`.
        quants: llama.cpp's names, in any case; empty for the default.
        name: the model's name; None for the source's.
        out: the bundle's folder; None for `NAME-gguf` in the current folder.
        adapters: more adapters, folders or Hub ids; SOURCE is the first, or the base of them all.
        combine: PEFT's `combination_type`; None to merge the adapters in turn.
        weights: for `combine` one for each adapter; empty for 1 each.
        density: for `combine`, the part of the values that pruning keeps.
        seed: for `combine`, of what prunes at random.
        base: the base's folder or Hub id; None for what the adapter records.
        text_only: of a model that sees or hears, make the text model alone.
        keep_base_quantized: take a base of bitsandbytes that the adapter records as it is, also
            where its 16-bit twin can be had.
        checkpoint: `N`, `best` or `last` of a Trainer's output; None for its final save.
        revision: of the id that is named in `source`, or else of the base.
        device: where to merge: `auto`, `cpu`, `cuda`.
        threads: how many threads quantize; 0 for one per core.
        system: a system prompt for the Modelfile.
        parameters: Ollama's parameters, which override what the model's own files say.
        stops: more stop strings.
        template: who renders: `auto`, `native` (the GGUF's own chat template), `go` (an Ollama
            TEMPLATE); or the path of the Jinja chat template of training.
        thinking: whether the model was trained to think: `on`, `off`, or `as-trained` for what its
            chat template does by itself.
        ollama_version: the server's, None for the newest known.
        preset: the name of a family's published sampling; None to write none.
        context_length: the context in tokens, by YaRN where it is longer than the model's own.
        force: overwrite another model's files in `out`.
    """

    source: str
    quants: tuple[str, ...] = ()
    name: str | None = None
    out: Path | None = None
    base: str | None = None
    checkpoint: str | None = None
    revision: str | None = None
    device: str = "auto"
    threads: int = 0
    system: str | None = None
    parameters: Mapping[str, int | float | str | bool] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    template: str = "auto"
    thinking: str = "as-trained"
    ollama_version: str | None = None
    preset: str | None = None
    context_length: int | None = None
    force: bool = False
    adapters: tuple[str, ...] = ()
    combine: str | None = None
    weights: tuple[float, ...] = ()
    density: float | None = None
    seed: int = 0
    keep_base_quantized: bool = False
    text_only: bool = False


@dataclass(frozen=True)
class PlannedQuant:
    """One GGUF of this model.

    Attributes:
        quant: llama.cpp's name.
        file_name: the GGUF's name in the bundle.
        size_bytes: the file's size, its metadata not counted.
        run_memory_bytes: weights and a key-value cache of the context chosen, or 4096 tokens.
        bits_per_weight: the real average.
        fallbacks: one line for each tensor that gets another type than the one meant for it.
        needs_imatrix: whether it cannot be made without an importance matrix.
        is_chosen: whether it will be made.
        is_default: whether it is what is made when nothing is asked for.
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
    """The `mmproj` beside the quants: what sees or hears for each of them.

    Attributes:
        file_name: its name in the bundle.
        size_bytes: its size, its metadata not counted.
    """

    file_name: str
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that a run would do, decided without reading a weight.

    Attributes:
        name: the model's name.
        out: the bundle's folder.
        source: what was chosen as source, and why.
        base: what was chosen as base, and why; None for a full model.
        architecture: GGUF's name of it.
        parameters: how many weights the model has.
        merged_tensors: how many of its tensors the adapter changes.
        device: where merging happens.
        quants: every quant that was looked at.
        projector: the file beside them, of a model that sees or hears.
        prompt: the decision on the prompt, in a sentence.
        stops: the stop strings that will be sent.
        read_bytes: what is read of the weights, once.
        write_bytes: what is written in `out`.
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
    read_bytes: int
    write_bytes: int
    memory_bytes: int

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values."""
        return dataclasses.asdict(self) | {"out": str(self.out)}


def estimate_memory(
    largest_merged_bytes: int,
    largest_computed_bytes: int,
    targets: int,
    held_bytes: int = 0,
    *,
    has_peft: bool = False,
) -> int:
    """The peak memory of packaging: it depends on the largest tensors, not on the model's size.

    Args:
        largest_merged_bytes: of the 16-bit tensors that the adapter changes.
        largest_computed_bytes: of the 16-bit tensors that are not read in blocks.
        targets: how many quants are written; what is read ahead is in memory for each.
        held_bytes: what merging has in memory from beginning to end.
        has_peft: whether PEFT had to be asked what the adapter changes, or has to merge it.
    """
    return (
        _PROCESS_BYTES
        + (_PEFT_BYTES if has_peft else 0)
        + held_bytes
        + 3 * max(largest_merged_bytes, largest_computed_bytes)
        + (2 + targets) * AHEAD_ELEMENTS
    )


def estimate_run_memory(
    size_bytes: int, key_values: Mapping[str, object], context_length: int = DEFAULT_CONTEXT
) -> int:
    """What a runtime needs for a GGUF: its weights, and fp16 keys and values for a context."""

    def number(suffix: str, default: int = 0) -> int:
        value = next((v for k, v in key_values.items() if k.endswith(suffix)), default)
        if isinstance(value, list):
            value = max(value, default=default)
        return value if isinstance(value, int) else default

    heads = number(".attention.head_count", 1)
    head_size = number(".embedding_length") // max(1, heads)
    width = number(".attention.key_length", head_size) + number(
        ".attention.value_length", head_size
    )
    cache_heads = number(".attention.head_count_kv", heads)
    return size_bytes + 2 * context_length * number(".block_count") * cache_heads * width
