"""A model card with another name for its base: the rest of it stays as its author wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packager.source.hub.hub import is_hub_id

if TYPE_CHECKING:
    import yaml

_HEADER = re.compile(r"\A---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
# The Hub's tag for what a model was made of: `base_model:adapter:OWNER/NAME`.
_TAG = re.compile(r"(?P<kind>base_model:(?:\w+:)?)(?P<name>.+)")
_LOCAL_PATH = re.compile(r"[/~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")


def is_local_path(text: str) -> bool:
    """Whether a name has the form of a path, absolute or from a folder that it names (`./x`)."""
    return _LOCAL_PATH.match(text) is not None


def with_base(text: str, recorded: str, base: str) -> str:
    """A card that names `base` where it named what the adapter's configuration has recorded.

    In the header that is `base_model` and the tags that begin with it, and there every path of a
    machine; elsewhere a recorded path, where it stands as a whole. Any other word is the author's,
    whatever it resembles.

    Args:
        text: the card.
        recorded: `base_model_name_or_path` of `adapter_config.json`, or nothing.
        base: the base's Hub id.
    """
    if header := _HEADER.match(text):
        first = header.start("yaml")
        for start, stop, value in reversed(list(_base_values(header["yaml"], recorded, base))):
            text = text[: first + start] + value + text[first + stop :]
    if not _is_path(recorded):
        return text
    path = re.escape(recorded.rstrip("/\\"))
    # Trainers link to it as to a page of the Hub.
    before = r"(?:(?<=huggingface\.co/)|(?<![\w.~/\\-]))"
    return re.sub(rf"{before}{path}(?![\w-]|\.\w)", base, text)


def _base_values(header: str, recorded: str, base: str) -> Iterator[tuple[int, int, str]]:
    """Where a header names the base as it was recorded, and what to write there instead."""
    import yaml

    try:
        root = yaml.compose(header, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        # The Hub does not read it either.
        return
    if not isinstance(root, yaml.MappingNode):
        return
    for key, node in root.value:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for item in items:
            if not isinstance(item, yaml.ScalarNode):
                continue
            kind, name = _named(key.value, item)
            if name not in ("", base) and (name == recorded or is_local_path(name)):
                start, stop = item.start_mark.index, item.end_mark.index
                # A folded one ends where the next line begins.
                written = header[start:stop].rstrip()
                yield start, start + len(written), _scalar(kind + base)


def _named(key: object, item: yaml.ScalarNode) -> tuple[str, str]:
    """The base that a value of the header names, with what stands before it; or nothing."""
    if key == "base_model":
        return "", item.value
    match = _TAG.fullmatch(item.value) if key == "tags" else None
    return (match["kind"], match["name"]) if match else ("", "")


def _scalar(text: str) -> str:
    """A string as YAML, in quotes where it would be read as something else (`1e5`)."""
    import yaml

    return text if yaml.safe_load(text) == text else json.dumps(text)


def _is_path(name: str) -> bool:
    """Whether a recorded name is a path, and so is one wherever it stands."""
    return bool(re.search(r"\w", name)) and (
        is_local_path(name) or (bool(re.search(r"[/\\]", name)) and not is_hub_id(name))
    )
