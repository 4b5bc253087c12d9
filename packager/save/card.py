"""A model card with another name for its base; the rest stays as its author wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packager.source.hub.hub import is_hub_id

if TYPE_CHECKING:
    import yaml

_HEADER = re.compile(r"\A---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
# The Hub's tag for what a model was made from: `base_model:adapter:OWNER/NAME`.
_TAG = re.compile(r"(?P<kind>base_model:(?:\w+:)?)(?P<name>.+)")
_LOCAL_PATH = re.compile(r"[/~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class _Replacement:
    """A text to be written in the place of a part of the header."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class _NamedBase:
    """A base that a value of the header names, with the prefix of its tag (`base_model:`)."""

    prefix: str
    name: str


def is_local_path(text: str) -> bool:
    """Whether a name has the form of a path, absolute or relative to a folder (`./x`)."""
    return _LOCAL_PATH.match(text) is not None


def with_base(text: str, recorded: str, base: str) -> str:
    """A card that names `base` where it named the base that the adapter's configuration records.

    In the header, these places are `base_model` and the tags that begin with it; any local path
    there is replaced too. Elsewhere it is a recorded path that stands by itself. Every other word
    stays as the author wrote it, whatever it resembles.

    Args:
        text: the card.
        recorded: `base_model_name_or_path` of `adapter_config.json`; empty if there is none.
        base: the base's Hub id.
    """
    if header := _HEADER.match(text):
        first = header.start("yaml")
        for each in reversed(list(_replacements(header["yaml"], recorded, base))):
            text = text[: first + each.start] + each.text + text[first + each.stop :]
    if not _is_path(recorded):
        return text
    path = re.escape(recorded.rstrip("/\\"))
    # Trainers link to the path as if it were a page of the Hub.
    before = r"(?:(?<=huggingface\.co/)|(?<![\w.~/\\-]))"
    return re.sub(rf"{before}{path}(?![\w-]|\.\w)", base, text)


def _replacements(header: str, recorded: str, base: str) -> Iterator[_Replacement]:
    """What to write where a header names the base as it was recorded."""
    import yaml

    try:
        root = yaml.compose(header, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        # The Hub cannot read it either.
        return
    if not isinstance(root, yaml.MappingNode):
        return
    for key, node in root.value:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for item in items:
            if not isinstance(item, yaml.ScalarNode):
                continue
            named = _named_base(key.value, item)
            if named and named.name != base and _is_recorded(named.name, recorded):
                start, stop = item.start_mark.index, item.end_mark.index
                # A folded value ends where the next line begins.
                written = header[start:stop].rstrip()
                yield _Replacement(start, start + len(written), _scalar(named.prefix + base))


def _named_base(key: object, item: yaml.ScalarNode) -> _NamedBase | None:
    """The base that a value of the header names, if it names one."""
    if key == "base_model":
        return _NamedBase("", item.value)
    match = _TAG.fullmatch(item.value) if key == "tags" else None
    return _NamedBase(match["kind"], match["name"]) if match else None


def _is_recorded(name: str, recorded: str) -> bool:
    """Whether a name in the header is the recorded one, or a path of some machine."""
    return name != "" and (name == recorded or is_local_path(name))


def _scalar(text: str) -> str:
    """A string as YAML, quoted if it would otherwise be read as something else (`1e5`)."""
    import yaml

    return text if yaml.safe_load(text) == text else json.dumps(text)


def _is_path(name: str) -> bool:
    """Whether a recorded name is clearly a path, and can be replaced wherever it stands."""
    return bool(re.search(r"\w", name)) and (
        is_local_path(name) or (bool(re.search(r"[/\\]", name)) and not is_hub_id(name))
    )
