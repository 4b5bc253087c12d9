"""What a source is, told without importing torch and without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from packager.errors import FtpackError, MissingWeightsError
from packager.files import format_bytes
from packager.model.checkpoint import describing_files
from packager.model.tensor_file import TensorInfo
from packager.model.tokenizer import load_vocabulary
from packager.progress import Progress
from packager.prompt.chat_template import load_chat_template
from packager.prompt.lint import lint
from packager.prompt.llamafactory import compare_with_name
from packager.source.base.foresee import foresee_base
from packager.source.open import Source, list_adapters, open_source
from packager.source.run.checkpoints import list_checkpoints
from packager.source.run.record import Training, read_training


def inspect(
    given: str, checkpoint: str | None, revision: str | None, progress: Progress
) -> dict[str, object]:
    """Facts about a source, as JSON values, in the order in which a person wants them."""
    try:
        source = open_source(given, checkpoint, revision, progress)
    except MissingWeightsError as error:
        if not (checkpoints := _checkpoints(Path(given))):
            raise
        return {"source": error.message, "checkpoints": checkpoints, "next": error.next_step}
    found: dict[str, object] = {"source": source.reason}
    training = read_training(source.folder)
    if training is not None:
        found |= {
            "trained with": f"{training.trainer} ({training.known_by.name})",
            "trained on": training.base,
            "training template": training.template,
            "training length": training.length,
            "training, not readable": training.problem,
        }
    base_folder: Path | None = None
    if source.adapter is not None:
        adapter = source.adapter
        base_folder, where = foresee_base(adapter)
        found |= {
            "method": adapter.config.method,
            "rank": adapter.config.rank,
            "alpha": adapter.config.alpha,
            "targets": adapter.config.target_modules,
            "adapter tensors": _summary(adapter.weights.tensors.values()),
            "base": adapter.config.base_model_name_or_path or "not recorded: name it with --base",
            "base found": where,
        }
    if source.model is not None:
        config = source.model.config
        found |= {
            "architecture": ", ".join(map(str, _list(config.get("architectures")))),
            "weights": _summary(source.model.tensors.values()),
        }
    found["chat template"], findings = _template(source, base_folder, training)
    if findings:
        found["chat template, found"] = findings
    if Path(given).is_dir() and (named := list_adapters(Path(given))):
        found["adapters in folders of their own"] = named
    if checkpoints := _checkpoints(Path(given)):
        found["checkpoints"] = checkpoints
    found["what will happen"] = _plan(source)
    found["next"] = f"ftpack ollama {given} --name NAME"
    return found


def _checkpoints(folder: Path) -> list[dict[str, object]]:
    """What is known of each checkpoint in a run's folder."""
    return [
        {"step": item.step, "loss": item.loss, "eval loss": item.eval_loss, "best": item.is_best}
        for item in (list_checkpoints(folder) if folder.is_dir() else [])
    ]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _summary(tensors: Iterable[TensorInfo]) -> str:
    infos = list(tensors)
    dtypes = sorted({info.dtype for info in infos})
    elements = sum(math.prod(info.shape) for info in infos)
    size = format_bytes(sum(info.size_bytes for info in infos))
    return f"{len(infos)}, {elements / 1e6:,.2f} M parameters, {'/'.join(dtypes)}, {size}"


def _plan(source: Source) -> str:
    """What packaging will do, in one sentence."""
    quantize = "and its weights are quantized as they are read; nothing but the bundle is written"
    if source.adapter is None:
        return f"The model is taken as it is, {quantize}"
    adapter = source.adapter
    return (
        f"The base is found, the {adapter.config.method} adapter is merged into it in memory, "
        f"tensor by tensor, {quantize}"
    )


def _template(
    source: Source, base_folder: Path | None, training: Training | None
) -> tuple[str, list[str]]:
    """Where the chat template is, and what is wrong with it."""
    try:
        base_files = describing_files(base_folder) if base_folder is not None else {}
        template = load_chat_template(source.files, base_files, None)
        if template is not None:
            vocabulary = load_vocabulary({**base_files, **source.files})
            findings = list(lint(template, vocabulary))
            if training is not None and training.trainer == "LLaMA-Factory" and training.template:
                difference = compare_with_name(template, training.template)
                findings[:0] = [difference] if difference else []
            return template.origin, findings
    except FtpackError as error:
        return error.message, []
    return "none beside it" + (
        "; the base's will be used" if source.adapter is not None else ""
    ), []
