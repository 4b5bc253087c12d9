"""Everything that can be decided before a weight is read."""

from __future__ import annotations

import gc
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.manifest import AdapterIdentity
from packager.errors import UsageError
from packager.files import read_ahead, read_json
from packager.gguf.convert import Conversion, convert, require_architecture
from packager.gguf.load_check import load_tried
from packager.gguf.projector import Projector, find_projector, require_targets_held
from packager.gguf.quants import DEFAULT_QUANT, QUANTS, Quant, parse_quant
from packager.gguf.toolchain import find_toolchain
from packager.gguf.types import TypedQuant, type_quants, write_skeleton
from packager.merge.adapters import MergedInTurn
from packager.merge.combine import CombinedAdapter, open_combined
from packager.merge.merged import MergedCheckpoint, changed_config
from packager.merge.route import open_merged
from packager.model.checkpoint import Checkpoint
from packager.model.dequantize.dequantized import Dequantized
from packager.model.dequantize.formats import quantization_settings, require_plain
from packager.package.checks import (
    refuse_imatrix,
    require_loaded,
    require_rows,
    warn_of_context,
)
from packager.package.fingerprint import adapter_identities, fingerprint
from packager.package.plan import (
    DEFAULT_CONTEXT,
    Plan,
    PlannedProjector,
    PlannedQuant,
    Request,
    estimate_memory,
    estimate_run_memory,
)
from packager.package.prompt_choice import chat_templates, decide_prompt, modelfile_spec
from packager.progress import Progress, Silent
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.decision import PromptDecision
from packager.prompt.modelfile_spec import ModelfileSpec
from packager.source.inputs import Inputs, find_inputs
from packager.source.open import Source
from packager.source.run.checkpoints import CHECKPOINT_PREFIXES
from packager.verify.vocabulary import content_tokens, prove_found_pre_tokenizer

# What a disk reads while the plan is made; more would only push other things out of memory.
_READ_AHEAD_BYTES = 4 << 30


@dataclass(frozen=True)
class Package:
    """Everything decided; no weight read and nothing written yet."""

    request: Request
    name: str
    inputs: Inputs
    checkpoint: Checkpoint
    conversion: Conversion
    quants: tuple[TypedQuant, ...]
    projector: Projector | None
    chat_template: ChatTemplate
    decision: PromptDecision
    modelfile: ModelfileSpec
    adapters: tuple[AdapterIdentity, ...]
    fingerprint: str
    plan: Plan

    @property
    def chosen(self) -> tuple[TypedQuant, ...]:
        """The quants that will be made, in the order of asking."""
        names = [quant.quant for quant in self.plan.quants if quant.is_chosen]
        wanted = [parse_quant(text).name for text in self.request.quants] or names
        by_name = {typed.quant.name: typed for typed in self.quants}
        return tuple(by_name[name] for name in dict.fromkeys(wanted))


def open_checkpoint(inputs: Inputs, device: str, progress: Progress) -> Checkpoint:
    """The tensors to package; adapters are held against the base here."""
    plain = _plain(inputs, progress)
    if not inputs.adapters:
        return plain
    merged = merge_adapters(plain, inputs, device)
    for warning in merged.warnings:
        progress.warn(warning)
    return merged


def merge_adapters(plain: Checkpoint, inputs: Inputs, device: str) -> MergedCheckpoint:
    """A base with the adapters that were named merged in; they are held against it here."""
    adapters = [(item.folder, item.weights) for item in inputs.adapters]
    if inputs.combination is not None:
        combined = CombinedAdapter(plain, adapters, inputs.combination)
        return open_combined(plain, combined, device)
    if len(adapters) > 1:
        return MergedInTurn(plain, adapters, device)
    return open_merged(plain, *adapters[0], device)


def _plain(inputs: Inputs, progress: Progress) -> Checkpoint:
    """The model's weights, dequantized where they are quantized: no merge goes into packed ones."""
    path = inputs.model.folder / "config.json"
    if quantization_settings(inputs.model.config) is None:
        require_plain(inputs.model, path)
        return inputs.model
    dequantized = Dequantized(inputs.model)
    require_plain(dequantized, path)
    progress.note(f"The {'base' if inputs.base else 'model'} is {dequantized.description}")
    return dequantized


@contextmanager
def described(inputs: Inputs, checkpoint: Checkpoint) -> Iterator[Mapping[str, Path]]:
    """The files that describe a checkpoint, for as long as they are read.

    Where merging changes what `config.json` has to say, that is a file of its own; so it is where
    the weights were quantized.
    """
    files = {**inputs.files, "config.json": checkpoint.files["config.json"]}
    changes = checkpoint.config_changes if isinstance(checkpoint, MergedCheckpoint) else {}
    if not changes:
        yield files
        return
    with tempfile.TemporaryDirectory(prefix="ftpack-") as folder:
        path = Path(folder) / "config.json"
        config = changed_config(read_json(files["config.json"]), changes)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        yield {**files, "config.json": path}


def choose_device(wanted: str) -> str:
    """The device to merge on; `auto` is a GPU where torch finds one.

    Raises:
        UsageError: if a GPU is asked for and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise UsageError(
        f"--device {wanted}: torch finds no CUDA device.",
        next_step="Use --device cpu, or check the driver and the torch build.",
    )


def prepare(
    request: Request, progress: Progress | None = None, every_quant: bool = False
) -> Package:
    """Decide everything that can be decided without reading a weight.

    Args:
        request: what the user wants.
        progress: where choices and their reasons are told.
        every_quant: look at all quants that llama.cpp has, not only at the chosen ones: for a plan
            that is only shown. Otherwise the disk is asked for the weights already.

    Raises:
        FtpackError: whatever is wrong with the input, before any long work.
    """
    progress = progress or Silent()
    wanted = [parse_quant(text) for text in request.quants] or [QUANTS[DEFAULT_QUANT]]
    with _without_collection():
        return _prepare(request, progress, wanted, every_quant)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage.

    A vocabulary is a million small objects, read several times here, and the libraries as many:
    looking through them over and over again took longer than everything else.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _prepare(
    request: Request, progress: Progress, wanted: list[Quant], every_quant: bool
) -> Package:
    toolchain = find_toolchain()
    inputs = find_inputs(request, progress)
    name = request.name or model_name(inputs.source)
    if not every_quant:
        read_ahead((file.path for file in inputs.model.weight_files), _READ_AHEAD_BYTES)
    require_architecture(toolchain, inputs.files["config.json"])
    chat_template, decision = decide_prompt(inputs, request, progress)
    spec = modelfile_spec(inputs, request, decision)
    device = choose_device(request.device)
    checkpoint = open_checkpoint(inputs, device, progress)
    with described(inputs, checkpoint) as files:
        require_rows(inputs, files["config.json"], checkpoint)
        conversion = convert(
            toolchain,
            checkpoint,
            files,
            name,
            chat_templates(decision),
            decision.end_token_ids,
            begins_with_bos=decision.begins_with_bos,
            context_length=request.context_length,
            is_content=content_tokens(inputs, decision),
        )
        projector = find_projector(
            toolchain, conversion, files, name, progress, is_text_only=request.text_only
        )
    prove_found_pre_tokenizer(conversion, inputs.files, toolchain, progress)
    require_targets_held(
        checkpoint, conversion, projector, progress, is_text_only=request.text_only
    )
    warn_of_context(request.context_length, conversion, progress)
    looked_at = list(QUANTS.values()) if every_quant else wanted
    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        skeleton = Path(scratch) / "skeleton.gguf"
        write_skeleton(skeleton, conversion)
        with load_tried(skeleton) as reason:
            typed = tuple(type_quants(conversion, dict.fromkeys(looked_at), skeleton))
            refuse_imatrix(typed, wanted)
            adapters = adapter_identities(inputs)
            digest = fingerprint(
                inputs, adapters, device, conversion, projector, decision, spec, name
            )
            require_loaded(reason(), toolchain, request, progress)
    return Package(
        request=request,
        name=name,
        inputs=inputs,
        checkpoint=checkpoint,
        conversion=conversion,
        quants=typed,
        projector=projector,
        chat_template=chat_template,
        decision=decision,
        modelfile=spec,
        adapters=adapters,
        fingerprint=digest,
        plan=_plan(
            request,
            name,
            device,
            inputs,
            conversion,
            projector,
            typed,
            wanted,
            spec,
            decision.reason,
        ),
    )


def model_name(source: Source) -> str:
    """A name for a model that was given none: its folder's, in the characters that Ollama takes."""
    folder = source.folder.absolute()
    stem = folder.parent.name if folder.name.startswith(CHECKPOINT_PREFIXES) else folder.name
    if source.model_id:
        stem = source.model_id.rpartition("/")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"


def _plan(
    request: Request,
    name: str,
    device: str,
    inputs: Inputs,
    conversion: Conversion,
    projector: Projector | None,
    typed: tuple[TypedQuant, ...],
    wanted: list[Quant],
    spec: ModelfileSpec,
    prompt: str,
) -> Plan:
    key_values = {key: item.value for key, item in conversion.key_values.items()}
    stem = file_stem(name)
    beside = None
    if projector:
        file_name = f"mmproj-{stem}-{projector.typed.quant.name}.gguf"
        beside = PlannedProjector(file_name, projector.typed.size_bytes)
    beside_bytes = beside.size_bytes if beside else 0
    quants = tuple(
        PlannedQuant(
            quant=item.quant.name,
            file_name=f"{stem}-{item.quant.name}.gguf",
            size_bytes=item.size_bytes,
            run_memory_bytes=estimate_run_memory(
                item.size_bytes + beside_bytes,
                key_values,
                request.context_length or DEFAULT_CONTEXT,
            ),
            bits_per_weight=item.bits_per_weight,
            fallbacks=item.fallbacks,
            needs_imatrix=item.needs_imatrix,
            is_chosen=item.quant in wanted,
            is_default=item.quant.name == DEFAULT_QUANT,
        )
        for item in typed
    )
    checkpoint = conversion.checkpoint
    merged = checkpoint if isinstance(checkpoint, MergedCheckpoint) else None
    tensors = (*conversion.tensors, *(projector.conversion.tensors if projector else ()))
    computed = [2 * tensor.elements for tensor in tensors if tensor.passes_from is None]
    return Plan(
        name=name,
        out=request.out or Path(f"{stem}-gguf"),
        source="; ".join(source.reason for source in inputs.sources),
        base=inputs.base.reason if inputs.base else None,
        architecture=conversion.architecture,
        parameters=sum(tensor.elements for tensor in tensors),
        merged_tensors=merged.targets if merged else 0,
        device=device,
        quants=quants,
        projector=beside,
        prompt=prompt,
        stops=spec.stops,
        read_bytes=sum(info.size_bytes for info in inputs.model.tensors.values()),
        write_bytes=sum(quant.size_bytes for quant in quants if quant.is_chosen) + beside_bytes,
        memory_bytes=estimate_memory(
            _largest_at_once(inputs, checkpoint),
            max(computed, default=0),
            len(wanted),
            merged.held_bytes if merged else 0,
            has_peft="peft" in sys.modules,
        ),
    )


def _largest_at_once(inputs: Inputs, checkpoint: Checkpoint) -> int:
    """The size of the largest tensor, or module, that is merged or dequantized as a whole."""
    largest = checkpoint.largest_bytes if isinstance(checkpoint, MergedCheckpoint) else 0
    if quantization_settings(inputs.model.config) is None:
        return largest
    kept = inputs.model.tensors
    made = [info for info in checkpoint.tensors.values() if kept.get(info.name) != info]
    # Stacks of experts are dequantized one by one.
    return max([largest, *(info.size_bytes for info in made if len(info.shape) == 2)])


def file_stem(name: str) -> str:
    """The part of a model's name that its files are called by (`user/model:tag` gives `model`)."""
    return name.rpartition("/")[2].partition(":")[0]
