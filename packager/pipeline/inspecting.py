"""What a source is, told without importing torch and without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from packager.checkpoint import TensorInfo, describing_files
from packager.errors import FtpackError
from packager.files import format_bytes
from packager.progress import Progress
from packager.prompt.chat_template import load_chat_template
from packager.prompt.lint import lint
from packager.prompt.vocabulary import load_vocabulary
from packager.source.hub import find_cached, is_hub_id
from packager.source.open import Source, list_adapters, open_source
from packager.source.trainer import list_checkpoints


def inspect(
    given: str, checkpoint: str | None, revision: str | None, progress: Progress
) -> dict[str, object]:
    """Facts about a source, as JSON values, in the order in which a person wants them."""
    source = open_source(given, checkpoint, revision, progress)
    found: dict[str, object] = {"source": source.reason}
    if source.adapter is not None:
        adapter = source.adapter
        found |= {
            "method": adapter.method,
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "targets": adapter.target_modules,
            "adapter tensors": _summary(adapter.weights.tensors.values()),
            "base": adapter.base_model_name_or_path or "not recorded: name it with --base",
            "base found": _where_is_base(adapter.base_model_name_or_path, adapter.revision),
        }
    if source.model is not None:
        config = source.model.config
        found |= {
            "architecture": ", ".join(map(str, _list(config.get("architectures")))),
            "weights": _summary(source.model.tensors.values()),
        }
    found["chat template"], findings = _template(source)
    if findings:
        found["chat template, found"] = findings
    if Path(given).is_dir() and (named := list_adapters(Path(given))):
        found["adapters in folders of their own"] = named
    checkpoints = list_checkpoints(Path(given)) if Path(given).is_dir() else []
    if checkpoints:
        found["checkpoints"] = [
            {
                "step": item.step,
                "loss": item.loss,
                "eval loss": item.eval_loss,
                "best": item.is_best,
            }
            for item in checkpoints
        ]
    found["next"] = f"ftpack ollama {given} --name NAME"
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _summary(tensors: Iterable[TensorInfo]) -> str:
    infos = list(tensors)
    dtypes = sorted({info.dtype for info in infos})
    elements = sum(math.prod(info.shape) for info in infos)
    size = format_bytes(sum(info.size_bytes for info in infos))
    return f"{len(infos)}, {elements / 1e6:,.2f} M parameters, {'/'.join(dtypes)}, {size}"


def _where_is_base(name: str | None, revision: str | None) -> str | None:
    """Where the recorded base would be taken from; the network is not asked."""
    if name is None:
        return None
    if Path(name).expanduser().is_dir():
        return f"the folder {name}"
    if not is_hub_id(name):
        return "no: neither a folder here nor a Hub id; name it with --base"
    if (cached := find_cached(name, revision)) is not None:
        return f"in the Hugging Face cache, {cached.folder}"
    return "not here; it will be downloaded from the Hub"


def _template(source: Source) -> tuple[str, list[str]]:
    """Where the chat template is, and what is wrong with it."""
    base_files: dict[str, Path] = {}
    adapter = source.adapter
    if adapter is not None and adapter.base_model_name_or_path:
        folder = Path(adapter.base_model_name_or_path).expanduser()
        cached = None if folder.is_dir() else find_cached(str(folder), adapter.revision)
        folder = cached.folder if cached is not None else folder
        base_files = describing_files(folder) if folder.is_dir() else {}
    try:
        template = load_chat_template(source.files, base_files, None)
        if template is not None:
            vocabulary = load_vocabulary({**base_files, **source.files})
            return template.origin, list(lint(template, vocabulary))
    except FtpackError as error:
        return error.message, []
    return "none beside it" + ("; the base's will be used" if adapter is not None else ""), []
