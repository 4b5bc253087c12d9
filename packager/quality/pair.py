"""A bitsandbytes base and its 16-bit original, side by side, as far as this machine has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.errors import CorruptFileError, FtpackError
from packager.model.adapter import Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import parse_config
from packager.model.dequantize.formats import quant_method, quantization_settings
from packager.model.model_file import ModelFile
from packager.progress import Silent
from packager.source.base.find import Base, local_folder
from packager.source.base.full_precision import (
    full_precision_beside,
    full_precision_name,
    is_full_precision_of,
)
from packager.source.hub.hub import find_cached, is_hub_id
from packager.source.model_folder import config_file, open_model


@dataclass(frozen=True)
class Pair:
    """The two models that an adapter of a quantized base can be merged into.

    Attributes:
        name: the name of the quantized base, as recorded or by its folder.
        settings: its `quantization_config`; None if its `config.json` is not available.
        quantized: its tensors, if they are available.
        full_precision: the tensors of the 16-bit original, if they are available.
        is_full_precision_used: whether the adapter is merged into the 16-bit original.
    """

    name: str
    settings: Mapping[str, object] | None
    quantized: FolderCheckpoint | None
    full_precision: FolderCheckpoint | None
    is_full_precision_used: bool


def find_pair(base: Base, adapter: Adapter) -> Pair | None:
    """The quantized base and its 16-bit original, one of which is `base`; downloads nothing.

    Gives None if neither `base` nor the base that the adapter records is from bitsandbytes.
    """
    used = base.checkpoint
    settings = quantization_settings(used.config)
    if settings is not None:
        if quant_method(settings) != "bitsandbytes":
            return None
        name = base.model_id or used.folder.absolute().name
        return Pair(name, settings, used, _original_of(base), is_full_precision_used=False)
    recorded = adapter.config.base_model_name_or_path or ""
    quantized = base.quantized or _recorded_config(adapter, recorded)
    if quantized is None:
        is_known = full_precision_name(recorded) is not None
        return Pair(recorded, None, None, used, is_full_precision_used=True) if is_known else None
    if quantized == used.config.file:
        return None
    settings = _bitsandbytes_settings(quantized)
    if settings is None or not is_full_precision_of(used.config.file, quantized):
        return None
    return Pair(recorded, settings, _opened(quantized), used, is_full_precision_used=True)


def _recorded_config(adapter: Adapter, recorded: str) -> ModelFile | None:
    """The `config.json` of the base that an adapter records, if its folder is on this machine."""
    folder = local_folder(recorded, adapter.folder) if recorded else None
    if folder is None and is_hub_id(recorded):
        cached = find_cached(recorded, adapter.config.revision)
        folder = cached.folder if cached else None
    return config_file(folder) if folder is not None else None


def _original_of(base: Base) -> FolderCheckpoint | None:
    """The 16-bit original of a quantized base, beside it or in the cache."""
    quantized = base.checkpoint.config.file
    beside = full_precision_beside(quantized, Silent())
    if beside is not None:
        return _opened(beside)
    name = full_precision_name(base.model_id or "")
    cached = find_cached(name, None) if name and is_hub_id(name) else None
    if cached is None:
        return None
    original = config_file(cached.folder)
    return _opened(original) if is_full_precision_of(original, quantized) else None


def _bitsandbytes_settings(config: ModelFile) -> Mapping[str, object] | None:
    """The `quantization_config` in a `config.json`, if it is one of bitsandbytes."""
    try:
        settings = quantization_settings(parse_config(config))
    except CorruptFileError:
        return None
    return settings if settings and quant_method(settings) == "bitsandbytes" else None


def _opened(config: ModelFile) -> FolderCheckpoint | None:
    """A model's tensors, if they are all available."""
    try:
        return open_model(config)
    except FtpackError:
        return None
