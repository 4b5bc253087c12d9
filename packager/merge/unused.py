"""Adapter tensors that no layer of the base takes: an error, with the cause where it is known."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from packager.errors import AdapterMismatchError, listed
from packager.merge.next_steps import CHECK_BASE_OR_SAVE_AGAIN
from packager.merge.plain.targets import PREFIX

# What is in names that are not as PEFT saves them, or not for this configuration.
_CAUSES = {
    r"_orig_mod\.": "saved from a compiled model",
    r"\.lora_[AB]\.default\.": "saved with the adapter's name in them",
    r"\.module\.": "saved from a wrapped model",
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_": "LoRA on embeddings",
}
# A tensor's name up to the number of its layer, and from there on.
_IN_LAYER = re.compile(r"(?P<head>.*?)\.(?P<tail>\d+\..*)")


def require_none_left(folder: Path, left: list[str], places: Collection[str]) -> None:
    """Refuse an adapter of which something would be left out.

    Args:
        folder: the adapter's.
        left: its tensors that have no place, by their names in the file.
        places: the names that PEFT would save the tensors of this base's layers under.

    Raises:
        AdapterMismatchError: listing the tensors.
    """
    if left:
        raise AdapterMismatchError(
            f"{len(left)} adapter tensors in {folder} belong to no targeted module of this base"
            f"{_cause(left, places)}: {listed(left)}.",
            next_step=CHECK_BASE_OR_SAVE_AGAIN,
        )


def _cause(left: list[str], places: Collection[str]) -> str:
    """Why names are not as PEFT saves them on this base, where that is known."""
    for pattern, cause in _CAUSES.items():
        if all(re.search(pattern, name) for name in left):
            return f" ({cause})"
    place = _same_layer(left[0], places)
    if place is None:
        return ""
    there, here = (_head(name.removeprefix(PREFIX)) for name in (left[0], place))
    return f" (saved from another class of model: {there!r} in their names is {here!r} in this one)"


def _head(name: str) -> str:
    return _IN_LAYER.sub(r"\g<head>", name)


def _same_layer(name: str, places: Collection[str]) -> str | None:
    """Of a model that is a part of another, the same tensor there (`model.language_model`)."""
    own = _IN_LAYER.fullmatch(name)
    if own is None:
        return None
    found = [
        place
        for place in places
        if (other := _IN_LAYER.fullmatch(place)) and other["tail"] == own["tail"]
        if _is_within(own["head"], other["head"]) or _is_within(other["head"], own["head"])
    ]
    # One that sees has layers of its own for that, further in.
    return min(found, key=lambda place: place.count("."), default=None)


def _is_within(inner: str, outer: str) -> bool:
    """Whether all parts of a name are in another, in the same order."""
    parts = iter(outer.split("."))
    return all(part in parts for part in inner.split("."))
