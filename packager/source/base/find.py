"""The base model that an adapter belongs to: where it is, and why that one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from packager.errors import (
    NAME_BASE,
    BaseNotFoundError,
    FtpackError,
    MissingWeightsError,
    NotAModelError,
    SourceNotFoundError,
)
from packager.files import existing_folder
from packager.model.adapter import ADAPTER_CONFIG_NAME, Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import CONFIG_NAME
from packager.model.model_file import ModelFile
from packager.progress import Progress
from packager.source.base.candidates import describe_candidates, find_candidates, find_namesakes
from packager.source.base.full_precision import (
    full_precision_beside,
    full_precision_name,
    full_precision_on_hub,
)
from packager.source.hub.completeness import is_complete_model
from packager.source.hub.hub import HubFolder, find_cached, find_file, is_hub_id, obtain
from packager.source.hub.identity import folder_identity
from packager.source.hub.modelscope import SCHEME, download_from_modelscope
from packager.source.model_folder import config_file, open_model

_QUANTIZED_NAME = re.compile(r"(-unsloth)?-bnb-4bit$|-(AWQ|GPTQ)(-\w+)?$", re.IGNORECASE)
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Base:
    """A model that adapters are merged into; its weights are plain or quantized.

    Attributes:
        checkpoint: its tensors; only headers have been read.
        model_id: its id on the Hub or ModelScope, if it is known: as asked for, by the cache that
            the folder is in, or as its configuration records it.
        revision: the commit of its snapshot, if it is known.
        reason: why this model was chosen, for people.
        quantized: the `config.json` of the bitsandbytes base that this 16-bit original replaces.
    """

    checkpoint: FolderCheckpoint
    model_id: str | None
    revision: str | None
    reason: str
    quantized: ModelFile | None = None


@dataclass(frozen=True)
class _Wanted:
    """The name or path of a base, its revision, and where both come from, for people."""

    name: str
    revision: str | None
    origin: str


def find_base(
    adapter: Adapter,
    wanted: str | None,
    revision: str | None,
    progress: Progress,
    keep_quantized: bool = False,
) -> Base:
    """The base of an adapter: a path, a model of the local cache, or a model of the Hub.

    Args:
        adapter: the adapter.
        wanted: the base's path or id; None for the one that the adapter records. In place of a
            recorded bitsandbytes base the 16-bit original is used, if it is available and fits.
        revision: the branch, tag or commit of the id; None for the one that the adapter records.
        progress: receives the decisions.
        keep_quantized: use a recorded bitsandbytes base itself.

    Raises:
        BaseNotFoundError: with the places that were searched.
        UnsupportedError: if the weights have a quantization that ftpack does not dequantize.
    """
    base = _recorded(adapter, revision) if wanted is None else _from_option(wanted, revision)
    folder = local_folder(base.name, adapter.folder if wanted is None else None)
    if folder is None and not base.name.startswith(SCHEME):
        is_path = wanted is None and is_likely_a_path(adapter, base.name, base.revision)
        if is_path or not is_hub_id(base.name):
            raise _not_here(adapter, base)
    config = config_file(folder) if folder is not None else None
    if wanted is None and not keep_quantized:
        config = config or _quantized_config(base)
        original = _find_original(base, folder, config, progress)
        if original is not None:
            return original
    if folder is not None:
        return _from_folder(config or config_file(folder), base)
    if base.name.startswith(SCHEME):
        folder = download_from_modelscope(base.name, base.revision, progress)
        reason = f"{base.origin}: {base.name}, in {folder}"
        return Base(open_model(config_file(folder)), base.name, base.revision, reason)
    return _from_hub(adapter, base, config, progress)


def is_likely_a_path(adapter: Adapter, name: str, revision: str | None) -> bool:
    """Whether a recorded id without an owner is more likely a path of the training machine.

    It is one if a folder of that name fits and the cache has no such model: ftpack does not
    download a stranger's repository in its place.
    """
    if "/" in name or not is_hub_id(name):
        return False
    cached = find_cached(name, revision)
    if cached is not None and is_complete_model(cached.folder):
        return False
    return bool(find_namesakes(adapter, name))


def local_folder(name: str, adapter_folder: Path | None) -> Path | None:
    """The folder with the path `name`, also relative to the adapter's folder, or None."""
    folder = existing_folder(name)
    if folder is None and adapter_folder is not None and not name.startswith(("/", "~")):
        folder = existing_folder(str(adapter_folder / name))
    return folder


def _from_option(wanted: str, revision: str | None) -> _Wanted:
    return _Wanted(wanted, revision, "chosen with --base")


def _recorded(adapter: Adapter, revision: str | None) -> _Wanted:
    """The base that an adapter records.

    Raises:
        BaseNotFoundError: if it records none, with the models that fit.
    """
    config = adapter.config
    if config.base_model_name_or_path is None:
        key = "base_model_name_or_path"
        value = json.dumps(config.raw[key])[:100] if key in config.raw else "missing"
        raise _not_found(adapter, "", f"{config.path} records no base (`{key}` is {value}).")
    return _Wanted(
        config.base_model_name_or_path,
        revision or config.revision,
        f"recorded in {ADAPTER_CONFIG_NAME}",
    )


def _quantized_config(base: _Wanted) -> ModelFile | None:
    """The `config.json` of a recorded bitsandbytes base on the Hub, if it is available."""
    if full_precision_name(base.name) is None or not is_hub_id(base.name):
        return None
    path = find_file(base.name, CONFIG_NAME, base.revision)
    return ModelFile(path) if path is not None else None


def _find_original(
    base: _Wanted, folder: Path | None, quantized: ModelFile | None, progress: Progress
) -> Base | None:
    """The 16-bit original of a recorded bitsandbytes base, if it is available and fits."""
    if folder is not None and quantized is not None:
        original = full_precision_beside(quantized, progress)
        model_id = None
    elif is_hub_id(base.name):
        original = full_precision_on_hub(base.name, quantized, progress)
        model_id = full_precision_name(base.name)
    else:
        return None
    if original is None:
        return None
    place = original.path.parent
    try:
        checkpoint = open_model(original)
    except (MissingWeightsError, NotAModelError):
        progress.note(f"The 16-bit original in {place} has no weights, or not all of them")
        return None
    progress.note(
        f"{base.name} is quantized to 4 bits: its 16-bit original is used, which has what the "
        "rounding lost (--keep-base-quantized uses the rounded weights of the training)"
    )
    return Base(
        checkpoint,
        model_id,
        place.name if model_id is not None else None,
        f"{base.origin}: {base.name}, replaced by its 16-bit original {model_id or place}",
        quantized,
    )


def _from_folder(config: ModelFile, base: _Wanted) -> Base:
    """A base in a folder, whose path a trainer may have recorded in place of the base's id."""
    checkpoint = open_model(config)
    folder = checkpoint.folder
    identity = folder_identity(str(folder.absolute()), checkpoint.config)
    reason = f"{base.origin}: the folder {folder}"
    if identity is None:
        return Base(checkpoint, None, None, reason)
    reason += f", which identifies itself as {identity.model_id}"
    return Base(checkpoint, identity.model_id, identity.revision, reason)


def _from_hub(
    adapter: Adapter, base: _Wanted, config: ModelFile | None, progress: Progress
) -> Base:
    """A base from the cache or the Hub; `config` is its `config.json`, if it was read already."""
    try:
        snapshot = obtain(base.name, base.revision, is_complete_model, progress)
    except SourceNotFoundError as error:
        message = (
            f"The base {base.name!r} ({base.origin}) is not a folder on this machine. "
            f"{error.message}"
        )
        raise _not_found(adapter, base.name, message, _hub_next_step(base.name, error)) from error
    where = "in the Hugging Face cache" if snapshot.was_cached else "downloaded from the Hub"
    reason = f"{base.origin}: {base.name}, {where}"
    return Base(open_model(_config_in(snapshot, config)), base.name, snapshot.revision, reason)


def _config_in(snapshot: HubFolder, config: ModelFile | None) -> ModelFile:
    """The snapshot's `config.json`: `config`, if it is that file."""
    own = config_file(snapshot.folder)
    return config if config == own else own


def _not_here(adapter: Adapter, base: _Wanted) -> BaseNotFoundError:
    """The error for a path that does not exist here, usually one of the training machine."""
    name = base.name
    if len(name) > _MOST_CHARACTERS:
        name = f"{name[:_MOST_CHARACTERS]}..."
    what = "is a Hub id without an owner" if is_hub_id(base.name) else "is not a Hub id"
    message = f"The base {name!r} ({base.origin}) is not a folder on this machine, and {what}."
    return _not_found(adapter, base.name, message)


def _not_found(adapter: Adapter, name: str, message: str, next_step: str = "") -> BaseNotFoundError:
    """The error for a base that is not available, with the models that fit."""
    candidates = find_candidates(adapter, name)
    if candidates:
        message += f" It may be one of these: {describe_candidates(candidates)}."
        next_step += (
            f" If the adapter was trained on it: --base {candidates[0].name}. ftpack does not "
            "choose one itself, since shapes do not distinguish a base from its variants."
        )
    return BaseNotFoundError(message, next_step=(next_step or NAME_BASE).lstrip())


def _hub_next_step(name: str, error: FtpackError) -> str:
    original = _QUANTIZED_NAME.sub("", name)
    if original != name:
        return f"{error.next_step} A quantized base needs its 16-bit original: --base {original}."
    return f"{error.next_step} Or name the base's folder with --base PATH."
