"""The prompt of a package: its chat template, who renders it, and what the Modelfile says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from packager.bundle.manifest import TrainedTemplate
from packager.errors import ChatTemplateError, SourceNotFoundError, UsageError
from packager.files import read_json
from packager.package.plan import Request
from packager.progress import Progress
from packager.prompt.chat_template import ChatTemplate, load_chat_template
from packager.prompt.decision import Choice, PromptDecision, decide
from packager.prompt.llamafactory import compare_with_name, is_known
from packager.prompt.modelfile_spec import ModelfileSpec, render_modelfile, sampling_parameters
from packager.prompt.presets import find_preset, presets_for
from packager.prompt.server import NEWEST_KNOWN
from packager.source.inputs import Inputs
from packager.source.run.record import read_training, training_length

# What `--thinking` says that the chat template was told in training.
_TOLD_IN_TRAINING: Mapping[str, Mapping[str, object]] = {
    "as-trained": {},
    "on": {"enable_thinking": True},
    "off": {"enable_thinking": False},
}


def decide_prompt(
    inputs: Inputs, request: Request, progress: Progress
) -> tuple[ChatTemplate, PromptDecision]:
    """Find the chat template of training, and decide who will render it."""
    override = None
    if request.template not in ("auto", "native", "go"):
        override = Path(request.template)
        if not override.is_file():
            raise SourceNotFoundError(
                f"There is no chat template {override}.",
                next_step="--template takes auto, native, go, or the path of a Jinja file.",
            )
    chat_template = load_chat_template(inputs.own_files, inputs.base_files, override)
    if chat_template is None:
        raise ChatTemplateError(
            f"Neither {inputs.source.folder} nor its base has a chat template, so that nobody "
            "knows how the model was prompted in training.",
            next_step="Name the Jinja file of training with --template FILE.",
        )
    progress.note(f"Chat template: {chat_template.origin}")
    version = request.ollama_version or NEWEST_KNOWN
    if not re.search(r"\d+\.\d+", version):
        raise UsageError(
            f"{version!r} is no version of Ollama.",
            next_step=f"Write it as `ollama --version` shows it, such as {NEWEST_KNOWN}.",
        )
    if override is None:
        _compare_with_training(inputs.source.folder, chat_template, progress)
    chat_template = replace(chat_template, variables=_TOLD_IN_TRAINING[request.thinking])
    choice = request.template if request.template in ("native", "go") else "auto"
    decision = decide(
        chat_template,
        inputs.vocabulary,
        choice=cast(Choice, choice),
        ollama_version=version,
    )
    progress.note(f"Prompt: {decision.reason}")
    if not request.preset:
        for preset in presets_for(read_json(inputs.files["config.json"])):
            progress.note(f"Published sampling, not written unasked: --preset {preset}")
    return chat_template, decision


def _compare_with_training(folder: Path, chat_template: ChatTemplate, progress: Progress) -> None:
    """Say where LLaMA-Factory has trained with another template than the one that lies there."""
    training = read_training(folder)
    if training is not None and training.problem is not None:
        progress.warn(f"{training.problem}: what it says of the training is not compared")
    if training is None or training.trainer != "LLaMA-Factory" or training.template is None:
        return
    if difference := compare_with_name(chat_template, training.template):
        progress.warn(difference)
    elif not is_known(training.template):
        progress.note(f"Nothing is known of LLaMA-Factory's template {training.template!r}")


def modelfile_spec(inputs: Inputs, request: Request, decision: PromptDecision) -> ModelfileSpec:
    """What the Modelfile says: the model's own files first, then what was asked for."""
    parameters: dict[str, int | float | str | bool] = dict(sampling_parameters(inputs.files))
    if inputs.base is not None:
        length = training_length(inputs.own_files, inputs.base_files)
        if length is not None:
            parameters["num_ctx"] = length
    if request.context_length:
        parameters["num_ctx"] = request.context_length
    if request.preset:
        parameters |= find_preset(request.preset).parameters
    stops = tuple(dict.fromkeys((*decision.stops, *request.stops)))
    spec = ModelfileSpec(
        decision.ollama_template, request.system, stops, {**parameters, **request.parameters}
    )
    # What Modelfile syntax cannot hold is refused here, not after the work.
    render_modelfile(spec, "model.gguf")
    return spec


def chat_templates(decision: PromptDecision) -> dict[str, str]:
    """The chat templates of the GGUF, by name."""
    found = {"default": decision.gguf_chat_template}
    if decision.gguf_tool_use_template:
        found["tool_use"] = decision.gguf_tool_use_template
    return found


def record_template(chat_template: ChatTemplate) -> TrainedTemplate:
    """The chat template of training as a manifest keeps it."""
    named = {"bos_token": chat_template.bos_token, "eos_token": chat_template.eos_token}
    tokens = {name: token for name, token in named.items() if token is not None}
    return TrainedTemplate(
        source=chat_template.source,
        tool_use=chat_template.tool_use,
        tokens={**chat_template.other_tokens, **tokens},
        variables={
            name: value
            for name, value in chat_template.variables.items()
            if isinstance(value, bool | int | float | str)
        },
    )


def recorded_template(record: TrainedTemplate, origin: str) -> ChatTemplate:
    """The chat template of training that a manifest has kept."""
    tokens = dict(record.tokens)
    bos_token, eos_token = tokens.pop("bos_token", None), tokens.pop("eos_token", None)
    return ChatTemplate(
        record.source, origin, bos_token, eos_token, tokens, record.tool_use, record.variables
    )
