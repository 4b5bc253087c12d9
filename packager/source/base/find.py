"""The base model that an adapter belongs to: where it is, and why that one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from packager.errors import (
    BaseNotFoundError,
    FtpackError,
    MissingWeightsError,
    NotAModelError,
    SourceNotFoundError,
)
from packager.files import existing_folder, require_inside
from packager.model.adapter import ADAPTER_CONFIG_NAME, Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import CONFIG_NAME, read_config
from packager.model.dequantize.formats import require_known
from packager.progress import Progress
from packager.source.base.candidates import find_candidates, find_namesakes, offered
from packager.source.base.full_precision import twin_beside, twin_name, twin_on_hub
from packager.source.hub.completeness import is_whole_model
from packager.source.hub.hub import find_cached, is_hub_id, obtain
from packager.source.hub.identity import folder_identity
from packager.source.hub.modelscope import SCHEME, download_from_modelscope

_QUANTIZED_NAME = re.compile(r"(-unsloth)?-bnb-4bit$|-(AWQ|GPTQ)(-\w+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Base:
    """A model, its weights plain or quantized.

    Attributes:
        checkpoint: its tensors; nothing of them is read yet.
        model_id: its id, where it is known: the Hub's or ModelScope's, asked for or by the cache
            that the folder is in, or as its config records it.
        revision: the commit of the snapshot, where it is known.
        reason: why this one, in words.
    """

    checkpoint: FolderCheckpoint
    model_id: str | None
    revision: str | None
    reason: str


def find_base(
    adapter: Adapter,
    wanted: str | None,
    revision: str | None,
    progress: Progress,
    keep_quantized: bool = False,
) -> Base:
    """The base of an adapter: `wanted`, else as recorded: a path, the local cache, the Hub.

    Where a base of bitsandbytes is recorded, that is its 16-bit twin if there is one that fits;
    with `keep_quantized`, or by an explicit `wanted`, it is the base itself.

    Raises:
        BaseNotFoundError: saying where it was looked for.
        UnsupportedError: if its weights are quantized in a way that cannot be undone.
    """
    name, why = wanted, "as asked with --base"
    if name is None:
        name, why = adapter.config.base_model_name_or_path, f"recorded in {ADAPTER_CONFIG_NAME}"
        revision = revision or adapter.config.revision
    if name is None:
        raise _unrecorded(adapter)
    folder = local_folder(name, adapter.folder if wanted is None else None)
    if folder is None and not name.startswith(SCHEME):
        if not is_hub_id(name):
            raise _gone(adapter, name, why)
        if wanted is None and may_be_a_path(adapter, name, revision):
            raise _gone(adapter, name, why)
    if wanted is None and not keep_quantized:
        twin = _find_twin(name, folder, revision, why, progress)
        if twin is not None:
            return twin
    if folder is not None:
        return _from_folder(folder, why)
    if name.startswith(SCHEME):
        folder = download_from_modelscope(name, revision, progress)
        return Base(open_model(folder), name, revision, f"{why}: {name}, in {folder}")
    return _from_hub(adapter, name, revision, why, progress)


def _find_twin(
    name: str, folder: Path | None, revision: str | None, why: str, progress: Progress
) -> Base | None:
    """The 16-bit model in place of one that bitsandbytes has quantized."""
    if folder is None and (twin_name(name) is None or not is_hub_id(name)):
        return None
    found = (
        twin_on_hub(name, revision, progress)
        if folder is None
        else twin_beside(folder.absolute(), progress)
    )
    if found is None:
        return None
    try:
        checkpoint = open_model(found)
    except (MissingWeightsError, NotAModelError):
        progress.note(f"The 16-bit twin in {found} has no weights, or not all of them")
        return None
    is_from_hub = folder is None
    model_id = twin_name(name) if is_from_hub else None
    progress.note(
        f"{name} is quantized to 4 bits: its 16-bit twin is used, which has what the rounding lost "
        "(--keep-base-quantized takes the rounded weights, as they were in training)"
    )
    return Base(
        checkpoint,
        model_id,
        found.name if is_from_hub else None,
        f"{why}: {name}, by its 16-bit twin {model_id or found}",
    )


def _from_folder(folder: Path, why: str) -> Base:
    """A base by its path, which saving may have put in the place of its name."""
    checkpoint = open_model(folder)
    identity = folder_identity(str(folder.absolute()), checkpoint.config.values)
    reason = f"{why}: the folder {folder}"
    if identity is None:
        return Base(checkpoint, None, None, reason)
    model_id, commit = identity
    return Base(checkpoint, model_id, commit, f"{reason}, which is {model_id} by what it says")


def _unrecorded(adapter: Adapter) -> BaseNotFoundError:
    """The error for an adapter that names no base, with what fits."""
    path = adapter.config.path
    raw = adapter.config.raw
    key = "base_model_name_or_path"
    value = json.dumps(raw[key])[:100] if key in raw else "missing"
    return _not_found(adapter, "", f"{path} records no base (`{key}` is {value}).")


def may_be_a_path(adapter: Adapter, name: str, revision: str | None) -> bool:
    """Whether a recorded id without an owner is rather a path that training had.

    It is one where a folder of that name fits, and no such id is in the cache: nobody's repository
    is downloaded in its place.
    """
    if "/" in name or not is_hub_id(name):
        return False
    cached = find_cached(name, revision)
    if cached is not None and is_whole_model(cached.folder):
        return False
    return bool(find_namesakes(adapter.folder, adapter.weights, name))


def _gone(adapter: Adapter, name: str, why: str) -> BaseNotFoundError:
    """The error for a path that is not here, as a rule the training machine's, with what fits."""
    shown = name if len(name) <= 300 else f"{name[:300]}..."
    what = "a Hub id without an owner" if is_hub_id(name) else "no Hub id"
    message = f"The base {shown!r} ({why}) is no folder on this machine, and {what}."
    return _not_found(adapter, name, message)


def _not_found(adapter: Adapter, name: str, message: str, next_step: str = "") -> BaseNotFoundError:
    """The error for a base that cannot be had, with what fits in its place."""
    candidates = find_candidates(adapter.folder, adapter.weights, name)
    if candidates:
        message += f" It may be one of these: {offered(candidates)}."
        next_step += (
            f" If the adapter was trained on it: --base {candidates[0].name}. None is taken "
            "unasked, since shapes do not tell a base from its variants."
        )
    step = next_step or "Name the model that was fine-tuned with --base PATH_OR_ID."
    return BaseNotFoundError(message, next_step=step.lstrip())


def local_folder(name: str, adapter_folder: Path | None) -> Path | None:
    """The folder that a base's name is the path of, also as seen from the adapter's folder."""
    folder = existing_folder(name)
    if folder is None and adapter_folder is not None and not name.startswith(("/", "~")):
        folder = existing_folder(str(adapter_folder / name))
    return folder


def _from_hub(
    adapter: Adapter, name: str, revision: str | None, why: str, progress: Progress
) -> Base:
    try:
        found = obtain(name, revision, is_whole_model, progress)
    except SourceNotFoundError as error:
        message = f"The base {name!r} ({why}) is no folder here. {error.message}"
        raise _not_found(adapter, name, message, _with_twin_hint(name, error)) from error
    where = "in the Hugging Face cache" if found.was_cached else "downloaded from the Hub"
    return Base(open_model(found.folder), name, found.revision, f"{why}: {name}, {where}")


def _with_twin_hint(name: str, error: FtpackError) -> str:
    twin = _QUANTIZED_NAME.sub("", name)
    if twin != name:
        return f"{error.next_step} A quantized base needs its 16-bit twin: --base {twin}."
    return f"{error.next_step} Or name the base's folder with --base PATH."


def open_model(folder: Path) -> FolderCheckpoint:
    """A full model's folder as a checkpoint.

    Raises:
        NotAModelError: if there is no `config.json`.
        UnsupportedError: if the weights are quantized in a way that cannot be undone.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise NotAModelError(
            f"{folder} has no config.json.",
            next_step="Name a folder that save_pretrained has written.",
        )
    config = read_config(require_inside(path, folder))
    require_known(config)
    return FolderCheckpoint(folder, config)
