"""Where packaging would take an adapter's base from, told without asking the network."""

from __future__ import annotations

from pathlib import Path

from packager.model.adapter import Adapter
from packager.progress import Silent
from packager.source.base.candidates import find_candidates, offered
from packager.source.base.find import local_folder, may_be_a_path
from packager.source.base.full_precision import is_twin, twin_beside, twin_name
from packager.source.hub.completeness import is_whole_model
from packager.source.hub.hub import find_cached, is_hub_id
from packager.source.hub.modelscope import SCHEME


def foresee_base(adapter: Adapter) -> tuple[Path | None, str]:
    """The base that `find_base` would take as recorded, as far as it is here.

    Returns:
        its folder, if it is on this machine, whole or not; and in words where it would come from.
    """
    name = adapter.config.base_model_name_or_path
    if name is None:
        return None, _gone(adapter, "", "no")
    if (folder := local_folder(name, adapter.folder)) is not None:
        return _foresee_folder(folder)
    if name.startswith(SCHEME):
        return None, "by ModelScope's client: from its cache, or downloaded"
    if not is_hub_id(name) or may_be_a_path(adapter, name, adapter.config.revision):
        what = "a Hub id with an owner" if is_hub_id(name) else "a Hub id"
        return None, _gone(adapter, name, f"no: neither a folder here nor {what}")
    return _foresee_id(name, adapter.config.revision)


def _foresee_folder(folder: Path) -> tuple[Path, str]:
    twin = twin_beside(folder.absolute(), Silent())
    if twin is not None and is_whole_model(twin):
        return twin, (
            f"the folder {twin}, the 16-bit twin of {folder} (--keep-base-quantized takes "
            f"{folder} itself)"
        )
    if twin_name(folder.absolute().name) is not None:
        return folder, f"the folder {folder}, as it is: no 16-bit twin that fits is beside it"
    return folder, f"the folder {folder}"


def _foresee_id(name: str, revision: str | None) -> tuple[Path | None, str]:
    own, own_words = _in_cache(name, revision)
    twin = twin_name(name)
    if twin is None:
        return own, own_words
    folder, words = _in_cache(twin, None)
    if own and folder and not is_twin(folder, own):
        return own, f"{own_words}; {twin} is no 16-bit twin of it, since its shape is another one"
    return folder or own, (
        f"its 16-bit twin {twin} is taken if it can be had and fits: {words} "
        f"(--keep-base-quantized takes {name} itself: {own_words})"
    )


def _in_cache(name: str, revision: str | None) -> tuple[Path | None, str]:
    """The snapshot in the cache, if it has a configuration, and what is still to come."""
    cached = find_cached(name, revision)
    if cached is None or not (cached.folder / "config.json").is_file():
        return None, "not here; it will be downloaded from the Hub"
    if not is_whole_model(cached.folder):
        return cached.folder, (
            f"partly in the Hugging Face cache, {cached.folder}; the rest will be downloaded from "
            "the Hub"
        )
    return cached.folder, f"in the Hugging Face cache, {cached.folder}"


def _gone(adapter: Adapter, name: str, why: str) -> str:
    """What may be the base that is not here."""
    candidates = find_candidates(adapter.folder, adapter.weights, name)
    hint = f" if it is one of: {offered(candidates)}" if candidates else ""
    return f"{why}; name it with --base{hint}"
