"""Where packaging would find an adapter's base, foreseen without the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.model.adapter import Adapter
from packager.model.model_file import ModelFile
from packager.progress import Silent
from packager.source.base.candidates import describe_candidates, find_candidates
from packager.source.base.find import is_likely_a_path, local_folder
from packager.source.base.full_precision import (
    full_precision_beside,
    full_precision_name,
    is_full_precision_of,
)
from packager.source.hub.completeness import is_complete_model
from packager.source.hub.hub import find_cached, is_hub_id
from packager.source.hub.modelscope import SCHEME
from packager.source.model_folder import config_file


@dataclass(frozen=True)
class ForeseenBase:
    """The base that `find_base` would take, as far as it is known without the network.

    Attributes:
        config: its `config.json`, if the base is on this machine, complete or not.
        location: where the base would come from, for people.
    """

    config: ModelFile | None
    location: str

    @property
    def folder(self) -> Path | None:
        """The base's folder, if it is on this machine, complete or not."""
        return self.config.path.parent if self.config is not None else None


def foresee_base(adapter: Adapter) -> ForeseenBase:
    """The base that `find_base` would take for an adapter without `--base`."""
    name = adapter.config.base_model_name_or_path
    if name is None:
        return ForeseenBase(None, _missing(adapter, "", "no"))
    if (folder := local_folder(name, adapter.folder)) is not None:
        return _foresee_folder(folder)
    if name.startswith(SCHEME):
        return ForeseenBase(None, "ModelScope's client finds it in its cache, or downloads it")
    if not is_hub_id(name) or is_likely_a_path(adapter, name, adapter.config.revision):
        what = "a Hub id with an owner" if is_hub_id(name) else "a Hub id"
        return ForeseenBase(
            None, _missing(adapter, name, f"no: neither a folder on this machine nor {what}")
        )
    return _foresee_id(name, adapter.config.revision)


def _foresee_folder(folder: Path) -> ForeseenBase:
    own = config_file(folder)
    original = full_precision_beside(own, Silent())
    if original is not None and is_complete_model(original.path.parent):
        return ForeseenBase(
            original,
            f"the folder {original.path.parent}, the 16-bit original of {folder} "
            f"(--keep-base-quantized takes {folder} itself)",
        )
    if full_precision_name(folder.absolute().name) is not None:
        return ForeseenBase(
            own,
            f"the folder {folder}, as it is: there is no matching 16-bit original beside it",
        )
    return ForeseenBase(own, f"the folder {folder}")


def _foresee_id(name: str, revision: str | None) -> ForeseenBase:
    own = _in_cache(name, revision)
    original_name = full_precision_name(name)
    if original_name is None:
        return own
    original = _in_cache(original_name, None)
    if own.config and original.config and not is_full_precision_of(original.config, own.config):
        return ForeseenBase(
            own.config,
            f"{own.location}; {original_name} is not its 16-bit original, since its shape differs",
        )
    return ForeseenBase(
        original.config or own.config,
        f"its 16-bit original {original_name}, if it is available and fits: {original.location} "
        f"(--keep-base-quantized takes {name} itself: {own.location})",
    )


def _in_cache(name: str, revision: str | None) -> ForeseenBase:
    """The snapshot in the cache, if it has a configuration, and the files still to download."""
    cached = find_cached(name, revision)
    file = config_file(cached.folder) if cached is not None else None
    if cached is None or file is None or not file.path.is_file():
        return ForeseenBase(
            None, "not on this machine; it will be downloaded from the Hugging Face Hub"
        )
    if not is_complete_model(cached.folder):
        return ForeseenBase(
            file,
            f"partly in the Hugging Face cache, {cached.folder}; the rest will be downloaded from "
            "the Hub",
        )
    return ForeseenBase(file, f"in the Hugging Face cache, {cached.folder}")


def _missing(adapter: Adapter, name: str, why: str) -> str:
    """The location of a base that is not available, with the models that fit."""
    candidates = find_candidates(adapter, name)
    hint = f" if it is one of: {describe_candidates(candidates)}" if candidates else ""
    return f"{why}; name it with --base{hint}"
