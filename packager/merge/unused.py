"""Adapter tensors that no layer of the base takes: an error, with the cause if it is known."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from packager.errors import AdapterMismatchError, listed
from packager.merge.next_steps import CHECK_BASE_OR_SAVE_AGAIN
from packager.merge.plain.targets import PREFIX

# Parts of names that PEFT does not save, or not for this configuration.
_CAUSES = {
    r"_orig_mod\.": "saved from a compiled model",
    r"\.lora_[AB]\.default\.": "saved with the adapter's name in them",
    r"\.module\.": "saved from a wrapped model",
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_": "LoRA on embeddings",
}
# A tensor's name up to the number of its layer, and from the number on.
_IN_LAYER = re.compile(r"(?P<head>.*?)\.(?P<tail>\d+\..*)")


def require_none_unplaced(folder: Path, unplaced: list[str], places: Collection[str]) -> None:
    """Refuse an adapter if the base has no place for some of its tensors.

    Args:
        folder: the adapter's.
        unplaced: its tensors without a place, by their names in the file.
        places: the names under which PEFT would save the tensors of this base's layers.

    Raises:
        AdapterMismatchError: listing the tensors.
    """
    if unplaced:
        raise AdapterMismatchError(
            f"{len(unplaced)} adapter tensors in {folder} belong to no targeted module of this base"
            f"{_cause(unplaced, places)}: {listed(unplaced)}.",
            next_step=CHECK_BASE_OR_SAVE_AGAIN,
        )


def _cause(unplaced: list[str], places: Collection[str]) -> str:
    """Why names are not as PEFT saves them on this base; empty if that is not known."""
    for pattern, cause in _CAUSES.items():
        if all(re.search(pattern, name) for name in unplaced):
            return f" ({cause})"
    place = _same_layer(unplaced[0], places)
    if place is None:
        return ""
    there, here = (_head(name.removeprefix(PREFIX)) for name in (unplaced[0], place))
    return f" (saved from another class of model: {there!r} in their names is {here!r} in this one)"


def _head(name: str) -> str:
    return _IN_LAYER.sub(r"\g<head>", name)


def _same_layer(name: str, places: Collection[str]) -> str | None:
    """The same tensor of a model that contains this one, or is part of it; None if unknown."""
    own = _IN_LAYER.fullmatch(name)
    if own is None:
        return None
    candidates = [
        place
        for place in places
        if (other := _IN_LAYER.fullmatch(place)) and other["tail"] == own["tail"]
        if _is_within(own["head"], other["head"]) or _is_within(other["head"], own["head"])
    ]
    # A multimodal model has vision layers of its own, further in.
    return min(candidates, key=lambda place: place.count("."), default=None)


def _is_within(inner: str, outer: str) -> bool:
    """Whether all parts of a name are in another, in the same order."""
    parts = iter(outer.split("."))
    return all(part in parts for part in inner.split("."))
