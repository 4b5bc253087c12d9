"""Who a base is, though only a folder is known: by the layout of a cache, or its config."""

from __future__ import annotations

import re
from collections.abc import Mapping

from packager.source.hub.hub import is_hub_id

_HUGGING_FACE = re.compile(r"(?:^|[/\\])models--([^/\\]+)(?:[/\\]snapshots[/\\]([0-9a-f]{40}))?")
# `.../modelscope/hub/models/ORG/NAME`, in older versions without `models`; a dot is written `___`.
_MODELSCOPE = re.compile(r"modelscope[/\\]hub[/\\](?:models[/\\])?([^/\\]+)[/\\]([^/\\]+)")


def cached_identity(path: str) -> tuple[str, str | None] | None:
    """The model id and commit that a path in a cache names, on this machine or another.

    Of ModelScope's ids, which are often those of the Hub as well, the id comes as one of the Hub.
    """
    if match := _HUGGING_FACE.search(path):
        model_id = match[1].replace("--", "/", 1)
        return (model_id, match[2]) if is_hub_id(model_id) else None
    if match := _MODELSCOPE.search(path):
        model_id = f"{match[1]}/{match[2]}".replace("___", ".")
        return (model_id, None) if is_hub_id(model_id) else None
    return None


def folder_identity(path: str, config: Mapping[str, object]) -> tuple[str, str | None] | None:
    """The model id and commit of a model's folder, as far as they are known.

    By the cache that it is in, else by `_name_or_path` of its config, where that is an id.
    """
    if found := cached_identity(path):
        return found
    name = config.get("_name_or_path")
    # Trained again or cut down, a folder keeps its origin's name: digests tell them apart.
    return (name, None) if isinstance(name, str) and "/" in name and is_hub_id(name) else None
