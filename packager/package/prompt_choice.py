"""The choice of a prompt: its chat template, who renders it, and what the Modelfile says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from packager.errors import ChatTemplateError, SourceNotFoundError
from packager.package.request import Request
from packager.progress import Progress
from packager.prompt.chat_template import ChatTemplate, load_chat_template
from packager.prompt.decision import PromptDecision, decide
from packager.prompt.llamafactory import compare_with_name, is_known
from packager.prompt.modelfile_text import render_modelfile, sampling_parameters
from packager.prompt.ollama_version import NEWEST_KNOWN
from packager.prompt.presets import find_preset, presets_for
from packager.prompt.prompt_options import PromptOptions
from packager.prompt.prompt_plan import PromptPlan
from packager.runtime.model_settings import ModelSettings
from packager.scalar import Scalar
from packager.source.inputs import Inputs
from packager.source.run.record import Training, training_length

# The chat template's variables in training, for each value of `--thinking`.
_TRAINING_VARIABLES: Mapping[str, Mapping[str, object]] = {
    "as-trained": {},
    "on": {"enable_thinking": True},
    "off": {"enable_thinking": False},
}


def require_usable(options: PromptOptions) -> None:
    """Refuse options that are wrong for any model.

    Raises:
        SourceNotFoundError: if the chat template's file does not exist.
        UsageError: if there is no such preset.
    """
    path = options.chat_template_file
    if path is not None and not path.is_file():
        raise SourceNotFoundError(
            f"There is no chat template {path}.",
            next_step="--template takes auto, native, go, or the path of a Jinja file.",
        )
    if options.preset:
        find_preset(options.preset)


def decide_prompt(inputs: Inputs, request: Request, progress: Progress) -> PromptPlan:
    """The training chat template, who renders it, and what the Modelfile says.

    Args:
        inputs: source and base.
        request: its `prompt` options, which `require_usable` accepts.
        progress: receives the decision, and warnings about the training template.

    Raises:
        ChatTemplateError: if there is no chat template, it cannot be used, or a Modelfile cannot
            express a text of the options.
        CorruptFileError: if a sampling setting of the model is not a number.
    """
    options = request.prompt
    chat_template = _training_template(inputs, options.chat_template_file, progress)
    chat_template = replace(chat_template, variables=_TRAINING_VARIABLES[options.thinking])
    decision = decide(
        chat_template,
        inputs.vocabulary,
        choice=options.renderer,
        ollama_version=options.ollama_version or NEWEST_KNOWN,
    )
    progress.note(f"Prompt: {decision.reason}")
    if not options.preset:
        for preset in presets_for(inputs.model.config.values):
            progress.note(f"Published sampling settings, not written: add --preset {preset}")
    return PromptPlan(chat_template, decision, _modelfile(inputs, request, decision))


def _training_template(
    inputs: Inputs, chat_template_file: Path | None, progress: Progress
) -> ChatTemplate:
    chat_template = load_chat_template(inputs.own_files, inputs.base_files, chat_template_file)
    if chat_template is None:
        raise ChatTemplateError(
            f"Neither {inputs.source.folder} nor its base has a chat template, so the training "
            "prompt is unknown.",
            next_step="Name the Jinja file that training used with --template FILE.",
        )
    progress.note(f"Chat template: {chat_template.origin}")
    if chat_template_file is None:
        _compare_with_training(inputs.source.training, chat_template, progress)
    return chat_template


def _compare_with_training(
    training: Training | None, chat_template: ChatTemplate, progress: Progress
) -> None:
    """Warn if LLaMA-Factory trained with another chat template than the one beside the adapter."""
    if training is not None and training.problem is not None:
        progress.warn(f"{training.problem}: a chat template that it names is not compared")
    if training is None or training.trainer != "LLaMA-Factory" or training.template_name is None:
        return
    if difference := compare_with_name(chat_template, training.template_name):
        progress.warn(difference)
    elif not is_known(training.template_name):
        progress.note(f"LLaMA-Factory's template {training.template_name!r} is not a known one")


def _modelfile(inputs: Inputs, request: Request, decision: PromptDecision) -> ModelSettings:
    """What the Modelfile says: the model's own files first, then what was asked for."""
    options = request.prompt
    parameters: dict[str, Scalar] = dict(sampling_parameters(inputs.files))
    if inputs.base is not None:
        length = training_length(inputs.own_files, inputs.base_files)
        if length is not None:
            parameters["num_ctx"] = length
    if options.context_length:
        parameters["num_ctx"] = options.context_length
    if options.preset:
        parameters |= find_preset(options.preset).parameters
    stops = tuple(dict.fromkeys((*decision.stops, *options.stops)))
    spec = ModelSettings(
        decision.ollama_template, options.system, stops, {**parameters, **options.parameters}
    )
    # What the Modelfile's syntax cannot express is refused here, not after the work.
    render_modelfile(spec, "model.gguf")
    return spec
