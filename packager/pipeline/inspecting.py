"""What a source is, told without importing torch and without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from packager.checkpoint import describing_files
from packager.errors import FtpackError, MissingWeightsError
from packager.files import existing_folder, format_bytes
from packager.progress import Progress
from packager.prompt.chat_template import load_chat_template
from packager.prompt.lint import lint
from packager.prompt.llamafactory import compare_with_name
from packager.prompt.vocabulary import load_vocabulary
from packager.source.candidates import find_candidates
from packager.source.hub import find_cached, is_hub_id
from packager.source.modelscope import SCHEME
from packager.source.open import Source, list_adapters, open_source
from packager.source.trainer import list_checkpoints
from packager.source.training import Training, read_training
from packager.tensor_file import TensorInfo


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
    if source.adapter is not None:
        adapter = source.adapter
        found |= {
            "method": adapter.method,
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "targets": adapter.target_modules,
            "adapter tensors": _summary(adapter.weights.tensors.values()),
            "base": adapter.base_model_name_or_path or "not recorded: name it with --base",
            "base found": _where_is_base(source, adapter.base_model_name_or_path, adapter.revision),
        }
    if source.model is not None:
        config = source.model.config
        found |= {
            "architecture": ", ".join(map(str, _list(config.get("architectures")))),
            "weights": _summary(source.model.tensors.values()),
        }
    found["chat template"], findings = _template(source, training)
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


def _gone(source: Source) -> str:
    """What may be the base whose recorded path is not here."""
    adapter = source.adapter
    assert adapter is not None
    recorded = adapter.base_model_name_or_path or ""
    candidates = find_candidates(adapter.folder, adapter.weights, recorded)
    offered = "; ".join(f"{item.name} ({item.reason})" for item in candidates)
    hint = f" if it is one of: {offered}" if offered else ""
    return f"no: neither a folder here nor a Hub id; name it with --base{hint}"


def _where_is_base(source: Source, name: str | None, revision: str | None) -> str | None:
    """Where the recorded base would be taken from; the network is not asked."""
    if name is None:
        return None
    if existing_folder(name) is not None:
        return f"the folder {name}"
    if name.startswith(SCHEME):
        return "by ModelScope's client: from its cache, or downloaded"
    if not is_hub_id(name):
        return _gone(source)
    if (cached := find_cached(name, revision)) is not None:
        return f"in the Hugging Face cache, {cached.folder}"
    return "not here; it will be downloaded from the Hub"


def _plan(source: Source) -> str:
    """What packaging will do, in one sentence."""
    quantize = "and its weights are quantized as they are read; nothing but the bundle is written"
    if source.adapter is None:
        return f"The model is taken as it is, {quantize}"
    adapter = source.adapter
    return (
        f"The base is found, the {adapter.method} adapter is merged into it in memory, tensor by "
        f"tensor, {quantize}"
    )


def _template(source: Source, training: Training | None) -> tuple[str, list[str]]:
    """Where the chat template is, and what is wrong with it."""
    base_files: dict[str, Path] = {}
    adapter = source.adapter
    if adapter is not None and adapter.base_model_name_or_path:
        name = adapter.base_model_name_or_path
        folder = existing_folder(name)
        if folder is None and is_hub_id(name) and (cached := find_cached(name, adapter.revision)):
            folder = cached.folder
        base_files = describing_files(folder) if folder is not None else {}
    try:
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
    return "none beside it" + ("; the base's will be used" if adapter is not None else ""), []
