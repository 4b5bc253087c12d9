"""Prepare: from a request to a package, without reading a weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packager.allocator import without_garbage_collection
from packager.files import read_ahead
from packager.gguf.convert import GgufPrompt, ModelSource, require_architecture
from packager.gguf.load_check import begin_load_check, require_loadable
from packager.gguf.projector import require_targets_held
from packager.gguf.toolchain import find_toolchain
from packager.gguf.types import TypedQuant, require_no_imatrix, type_quants, write_skeleton
from packager.merge.device import choose_device
from packager.package.conversion import Converted, convert_model
from packager.package.merged_model import MergeOnto, open_merged
from packager.package.names import gguf_name, model_name, projector_name
from packager.package.package import Package, PlannedGguf
from packager.package.prompt_choice import decide_prompt, require_usable
from packager.package.provenance import adapter_identities
from packager.package.request import Request
from packager.progress import Progress, Silent
from packager.prompt.prompt_plan import PromptPlan
from packager.source.inputs import Inputs, find_inputs
from packager.source.vocabulary_rows import require_rows
from packager.verify.vocabulary import content_tokens

# What a disk can read in the meantime; more would only evict other things from memory.
_READ_AHEAD_BYTES = 4 << 30


def prepare(
    request: Request, scratch: Path, progress: Progress | None = None, *, will_build: bool = True
) -> Package:
    """The package of a request; no weight is read.

    Args:
        request: what the user wants.
        scratch: a temporary folder that exists as long as the package is used (`scratch_folder`).
        progress: receives every choice, and the reason for it.
        will_build: whether the weights are read next; the disk then starts to read them already.

    Raises:
        FtpackError: whatever is wrong with the input, before any long work.
    """
    with without_garbage_collection():
        return _prepare(request, scratch, progress or Silent(), will_build=will_build)


def _prepare(request: Request, scratch: Path, progress: Progress, *, will_build: bool) -> Package:
    toolchain = find_toolchain()
    inputs = open_inputs(request, progress)
    if will_build:
        read_ahead((file.path for file in inputs.model.weight_files), _READ_AHEAD_BYTES)
    require_architecture(toolchain, inputs.model.config)
    name = request.name or model_name(inputs.source)
    prompt = decide_prompt(inputs, request, progress)
    merge_onto = adapters_of(inputs, request, scratch)
    model = open_merged(inputs, merge_onto, progress)
    require_rows(inputs, model.config, model.tensors)
    source = ModelSource(model, inputs.files, name)
    converted = convert_model(
        toolchain, source, _gguf_prompt(inputs, prompt), request, scratch, progress
    )
    text, projector = converted.text, converted.projector
    is_text_only = request.build.text_only
    require_targets_held(
        model.facts.merged_names, text, projector, progress, is_text_only=is_text_only
    )
    skeleton = scratch / "skeleton.gguf"
    write_skeleton(skeleton, text)
    with begin_load_check(skeleton) as reason:
        typed = tuple(type_quants(text, request.build.wanted, skeleton))
        require_no_imatrix(typed, request.build.wanted)
        adapters = adapter_identities(inputs)
        require_loadable(reason(), toolchain, request.force, progress)
    return Package(
        name=name,
        inputs=inputs,
        adapters=adapters,
        merge_onto=merge_onto,
        model=model,
        text=text,
        prompt=prompt,
        files=_planned_files(name, converted, typed),
        options=request.build,
        context_length=request.prompt.context_length,
        force=request.force,
    )


def open_inputs(request: Request, progress: Progress) -> Inputs:
    """The source and its base, as the request names them.

    What is wrong with the options alone is refused first, since a base may have to be downloaded.

    Raises:
        UsageError: if the options on several adapters do not fit together, or a value does not
            exist: a preset, or a GPU.
        InputRefusedError: whatever is wrong with source, base, or the chat template's file.
    """
    require_usable(request.prompt)
    if request.merge.device == "cuda":
        choose_device(request.merge.device)
    combination = request.merge.combination
    if combination is None:
        return find_inputs(request.source, progress)
    return find_inputs(
        request.source, progress, first_leads=True, check_adapters=combination.require_fits
    )


def adapters_of(inputs: Inputs, request: Request, scratch: Path) -> MergeOnto:
    """The adapters of a run, with the device that they are merged on.

    Raises:
        UsageError: if the request names a GPU, and torch finds none.
    """
    options = replace(request.merge, device=choose_device(request.merge.device))
    return MergeOnto(inputs.adapters, options, scratch)


def _gguf_prompt(inputs: Inputs, prompt: PromptPlan) -> GgufPrompt:
    decision = prompt.decision
    base = inputs.base_vocabulary if inputs.base else None
    return GgufPrompt(
        prompt.gguf_chat_templates,
        decision.end_token_ids,
        decision.begins_with_bos,
        content_tokens(inputs.vocabulary, base, prompt),
    )


def _planned_files(
    name: str, converted: Converted, typed: tuple[TypedQuant, ...]
) -> tuple[PlannedGguf, ...]:
    files = [PlannedGguf(gguf_name(name, item.quant), converted.text, item) for item in typed]
    if projector := converted.projector:
        file_name = projector_name(name, projector.typed.quant)
        files.append(
            PlannedGguf(file_name, projector.conversion, projector.typed, is_projector=True)
        )
    return tuple(files)
