"""The id of a model of which only the folder is known, by a cache's layout or its configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packager.model.config import ModelConfig
from packager.source.hub.hub import is_hub_id

_HUGGING_FACE = re.compile(r"(?:^|[/\\])models--([^/\\]+)(?:[/\\]snapshots[/\\]([0-9a-f]{40}))?")
# `.../modelscope/hub/models/ORG/NAME`, in older versions without `models`; a dot is written `___`.
_MODELSCOPE = re.compile(r"modelscope[/\\]hub[/\\](?:models[/\\])?([^/\\]+)[/\\]([^/\\]+)")


@dataclass(frozen=True)
class ModelIdentity:
    """A model's Hub id, and the commit of its snapshot, if that is known."""

    model_id: str
    revision: str | None = None


def cached_identity(path: str) -> ModelIdentity | None:
    """The model whose cache a path lies in, on this machine or another; None for other paths.

    An id of ModelScope is returned as a Hub id, since models often have the same id on both.
    """
    if match := _HUGGING_FACE.search(path):
        model_id = match[1].replace("--", "/", 1)
        return ModelIdentity(model_id, match[2]) if is_hub_id(model_id) else None
    if match := _MODELSCOPE.search(path):
        model_id = f"{match[1]}/{match[2]}".replace("___", ".")
        return ModelIdentity(model_id) if is_hub_id(model_id) else None
    return None


def folder_identity(path: str, config: ModelConfig) -> ModelIdentity | None:
    """The model in a folder, by the cache around it, else by `_name_or_path` if that is an id."""
    if identity := cached_identity(path):
        return identity
    name = config.values.get("_name_or_path")
    # A folder that was trained further or pruned keeps this name: digests distinguish them.
    is_id = isinstance(name, str) and "/" in name and is_hub_id(name)
    return ModelIdentity(str(name)) if is_id else None
