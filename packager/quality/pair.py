"""A base of bitsandbytes and its 16-bit twin, side by side: as far as this machine has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import CorruptFileError, FtpackError
from packager.files import read_json
from packager.model.adapter import Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.dequantize.formats import quant_method, quantization_settings
from packager.progress import Silent
from packager.source.base.find import Base, local_folder, open_model
from packager.source.base.full_precision import is_twin, twin_beside, twin_name
from packager.source.hub.hub import find_cached, is_hub_id


@dataclass(frozen=True)
class Pair:
    """Both models that an adapter of a quantized base can be merged into.

    Attributes:
        name: the quantized one's, as recorded or by its folder.
        settings: its `quantization_config`; None where not even its `config.json` is at hand.
        quantized: its tensors, if they are at hand.
        twin: those of the 16-bit model, if they are at hand.
        is_twin_used: which of the two is merged into.
    """

    name: str
    settings: Mapping[str, object] | None
    quantized: FolderCheckpoint | None
    twin: FolderCheckpoint | None
    is_twin_used: bool


def find_pair(base: Base, adapter: Adapter) -> Pair | None:
    """The quantized base and its twin, one of which is `base`; nothing is downloaded for it.

    Gives None where neither what is used nor what the adapter records is of bitsandbytes.
    """
    used = base.checkpoint
    settings = quantization_settings(used.config)
    if settings is not None:
        if quant_method(settings) != "bitsandbytes":
            return None
        name = base.model_id or used.folder.absolute().name
        return Pair(name, settings, used, _twin_of(base), is_twin_used=False)
    recorded = adapter.config.base_model_name_or_path or ""
    folder = local_folder(recorded, adapter.folder) if recorded else None
    if folder is None and is_hub_id(recorded):
        cached = find_cached(recorded, adapter.config.revision)
        folder = cached.folder if cached else None
    settings = _settings_in(folder)
    if folder is None or settings is None:
        is_known = folder is None and twin_name(recorded) is not None
        return Pair(recorded, None, None, used, is_twin_used=True) if is_known else None
    if not is_twin(used.folder, folder):
        return None
    return Pair(recorded, settings, _opened(folder), used, is_twin_used=True)


def _twin_of(base: Base) -> FolderCheckpoint | None:
    folder = base.checkpoint.folder.absolute()
    beside = twin_beside(folder, Silent())
    if beside is not None:
        return _opened(beside)
    name = twin_name(base.model_id or "")
    cached = find_cached(name, None) if name and is_hub_id(name) else None
    if cached is None or not is_twin(cached.folder, folder):
        return None
    return _opened(cached.folder)


def _settings_in(folder: Path | None) -> Mapping[str, object] | None:
    """The `quantization_config` of a folder, if that is of bitsandbytes."""
    if folder is None:
        return None
    try:
        settings = quantization_settings(read_json(folder / "config.json"))
    except CorruptFileError:
        return None
    return settings if settings and quant_method(settings) == "bitsandbytes" else None


def _opened(folder: Path) -> FolderCheckpoint | None:
    """A model's tensors, if they are all there."""
    try:
        return open_model(folder)
    except FtpackError:
        return None
