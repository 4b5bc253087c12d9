"""`ftpack inspect`: what a source is, without importing torch and without reading a weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packager.errors import FtpackError, MissingWeightsError
from packager.files import format_bytes
from packager.model.adapter import Adapter
from packager.model.checkpoint import FolderCheckpoint, describing_files
from packager.model.config import CONFIG_NAME, read_config
from packager.model.tensor_file import TensorInfo
from packager.model.tokenizer import load_vocabulary
from packager.progress import Progress, Silent
from packager.prompt.chat_template import load_chat_template
from packager.prompt.lint import lint
from packager.prompt.llamafactory import compare_with_name
from packager.source.base.foresee import foresee_base
from packager.source.open import Source, list_adapters, open_source
from packager.source.run.checkpoints import list_checkpoints
from packager.source.run.record import Training
from packager.source.source_options import SourceOptions


@dataclass(frozen=True)
class Tensors:
    """Some tensors, counted.

    Attributes:
        count: how many tensors there are.
        parameters: how many numbers they hold.
        dtypes: their element types.
        size_bytes: their size.
    """

    count: int
    parameters: int
    dtypes: tuple[str, ...]
    size_bytes: int

    def __str__(self) -> str:
        """The same in one line."""
        return (
            f"{self.count}, {self.parameters / 1e6:,.2f} M parameters, {'/'.join(self.dtypes)}, "
            f"{format_bytes(self.size_bytes)}"
        )


@dataclass(frozen=True)
class InspectedTraining:
    """What a training run left about itself.

    Attributes:
        trainer: the trainer's name.
        known_by: the file that says so.
        base: the base that its configuration names.
        template_name: the name of the template that it trained with.
        length: the sequence length in tokens.
        problem: why that file says no more, if it cannot be read.
    """

    trainer: str
    known_by: str
    base: str | None
    template_name: str | None
    length: int | None
    problem: str | None


@dataclass(frozen=True)
class InspectedAdapter:
    """An adapter, and the base that it needs.

    Attributes:
        method: the method's name.
        rank: its rank, if the method has one.
        alpha: its alpha, if the method has one.
        targets: the kinds of modules that it tunes.
        tensors: its tensors.
        base: the base that it records; None if it records none.
        base_location: where packaging would take the base from.
    """

    method: str
    rank: int | None
    alpha: float | None
    targets: str
    tensors: Tensors
    base: str | None
    base_location: str


@dataclass(frozen=True)
class InspectedModel:
    """A full model.

    Attributes:
        architectures: what its `config.json` names.
        tensors: its tensors.
    """

    architectures: tuple[str, ...]
    tensors: Tensors


@dataclass(frozen=True)
class InspectedCheckpoint:
    """A training checkpoint.

    Attributes:
        step: the step that it was saved at.
        loss: the training loss there, if it is known.
        eval_loss: the evaluation loss there, if it is known.
        is_best: whether `trainer_state.json` calls it the best.
    """

    step: int
    loss: float | None
    eval_loss: float | None
    is_best: bool


@dataclass(frozen=True)
class Inspection:
    """What a source is, and what it needs.

    Attributes:
        source: what was chosen as source, and why; or what is wrong with it.
        training: what is known of its training run.
        adapter: the adapter, if it is one.
        model: the full model, if it is one.
        chat_template: where its chat template is.
        chat_template_problems: what is wrong with that template.
        named_adapters: the adapters in folders of their own names.
        checkpoints: the training checkpoints.
        what_happens: what packaging would do.
        next_step: the next command to type.
    """

    source: str
    training: InspectedTraining | None = None
    adapter: InspectedAdapter | None = None
    model: InspectedModel | None = None
    chat_template: str | None = None
    chat_template_problems: tuple[str, ...] = ()
    named_adapters: tuple[str, ...] = ()
    checkpoints: tuple[InspectedCheckpoint, ...] = ()
    what_happens: str | None = None
    next_step: str = ""

    def to_json(self) -> dict[str, object]:
        """The same as JSON values, by the attributes' names."""
        return dataclasses.asdict(self)


def inspect(options: SourceOptions, progress: Progress | None = None) -> Inspection:
    """What a source is, which base it needs, and which training checkpoints it has.

    Args:
        options: its `source`, `checkpoint` and `revision`.
        progress: told what is downloaded.

    Raises:
        InputRefusedError: if there is no such source, or it is not one.
    """
    given = Path(options.source)
    checkpoints = _checkpoints(given)
    try:
        source = open_source(
            options.source, options.checkpoint, options.revision, progress or Silent()
        )
    except MissingWeightsError as error:
        if not checkpoints:
            raise
        return Inspection(error.message, checkpoints=checkpoints, next_step=error.next_step)
    training = source.training
    template = _inspect_template(source, training)
    return Inspection(
        source=source.reason,
        training=_inspect_training(training) if training else None,
        adapter=_inspect_adapter(source.adapter) if source.adapter else None,
        model=_inspect_model(source.model) if source.model else None,
        chat_template=template.location,
        chat_template_problems=template.problems,
        named_adapters=tuple(list_adapters(given)) if given.is_dir() else (),
        checkpoints=checkpoints,
        what_happens=_what_happens(source),
        next_step=f"ftpack ollama {options.source} --name NAME",
    )


def _checkpoints(folder: Path) -> tuple[InspectedCheckpoint, ...]:
    return tuple(
        InspectedCheckpoint(item.step, item.loss, item.eval_loss, item.is_best)
        for item in (list_checkpoints(folder) if folder.is_dir() else [])
    )


def _inspect_training(training: Training) -> InspectedTraining:
    return InspectedTraining(
        training.trainer,
        training.known_by.name,
        training.base,
        training.template_name,
        training.length,
        training.problem,
    )


def _inspect_adapter(adapter: Adapter) -> InspectedAdapter:
    config = adapter.config
    return InspectedAdapter(
        method=config.method,
        rank=config.rank,
        alpha=config.alpha,
        targets=config.target_modules,
        tensors=_counted(adapter.weights.tensors.values()),
        base=config.base_model_name_or_path,
        base_location=foresee_base(adapter).location,
    )


def _inspect_model(model: FolderCheckpoint) -> InspectedModel:
    return InspectedModel(model.config.architectures, _counted(model.tensors.values()))


def _counted(tensors: Iterable[TensorInfo]) -> Tensors:
    infos = list(tensors)
    return Tensors(
        len(infos),
        sum(math.prod(info.shape) for info in infos),
        tuple(sorted({info.dtype for info in infos})),
        sum(info.size_bytes for info in infos),
    )


def _what_happens(source: Source) -> str:
    quantizing = "and its weights are quantized as they are read; only the bundle is written"
    if source.adapter is None:
        return f"The model is taken as it is, {quantizing}"
    return (
        f"The base is found, the {source.adapter.config.method} adapter is merged into it in "
        f"memory, tensor by tensor, {quantizing}"
    )


@dataclass(frozen=True)
class _Template:
    """Where the chat template is, and what is wrong with it."""

    location: str
    problems: tuple[str, ...] = ()


def _inspect_template(source: Source, training: Training | None) -> _Template:
    try:
        return _find_template(source, training)
    except FtpackError as error:
        return _Template(error.message)


def _find_template(source: Source, training: Training | None) -> _Template:
    folder = foresee_base(source.adapter).folder if source.adapter else None
    base_files = describing_files(folder) if folder else {}
    chat_template = load_chat_template(source.files, base_files, None)
    if chat_template is None:
        is_adapter = source.adapter is not None
        return _Template("none beside it" + ("; the base's will be used" if is_adapter else ""))
    config = source.model.config if source.model else None
    if folder and (folder / CONFIG_NAME).is_file():
        config = read_config(folder / CONFIG_NAME)
    vocabulary = load_vocabulary({**base_files, **source.files}, config)
    problems = list(lint(chat_template, vocabulary))
    if training is not None and training.trainer == "LLaMA-Factory" and training.template_name:
        difference = compare_with_name(chat_template, training.template_name)
        problems[:0] = [difference] if difference else []
    return _Template(chat_template.origin, tuple(problems))
