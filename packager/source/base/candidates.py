"""Models that fit an adapter whose recorded base is missing; they are offered, never chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.errors import FtpackError
from packager.files import existing_folder
from packager.model.adapter import ADAPTER_CONFIG_NAME, Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.config import CONFIG_NAME
from packager.model.tensor_file import TensorFile
from packager.source.hub.hub import is_hub_id
from packager.source.hub.identity import cached_identity
from packager.source.run.record import read_training

_MOST_EXAMINED, _MOST_OFFERED, _MOST_PARTS = 200, 4, 4
# The rank of a model with the recorded name.
_NAMESAKE = 1
_LORA = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")

# `[out_features, in_features]` of a weight, as far as it is known.
_Shape = tuple[int | None, int | None]


@dataclass(frozen=True)
class Candidate:
    """A model that may be the base.

    Attributes:
        name: the value for `--base`.
        reason: why it is offered, for people.
        rank: how well it fits; a lower rank is better.
    """

    name: str
    reason: str
    rank: int


@dataclass(frozen=True)
class _Place:
    """A model's folder, and the name that it is offered by."""

    name: str
    folder: Path


def find_candidates(adapter: Adapter, recorded: str) -> list[Candidate]:
    """Models that fit an adapter, in the cache and beside the adapter, the most likely first.

    Only headers are read. Shapes alone do not distinguish a base from its instruction-tuned
    variant, so that the user has to choose.

    Args:
        adapter: the adapter.
        recorded: the base that it records; empty if it records none.
    """
    candidates = [*_recorded_elsewhere(adapter, recorded), *_fitting_places(adapter, recorded)]
    unique = {item.name: item for item in sorted(candidates, key=lambda item: -item.rank)}
    return sorted(unique.values(), key=lambda item: (item.rank, item.name))[:_MOST_OFFERED]


def find_namesakes(adapter: Adapter, recorded: str) -> list[Candidate]:
    """The candidates that are folders on this machine and have the recorded name."""
    return [
        item
        for item in find_candidates(adapter, recorded)
        if item.rank == _NAMESAKE and existing_folder(item.name)
    ]


def describe_candidates(candidates: Sequence[Candidate]) -> str:
    """The candidates, each with its reason."""
    return "; ".join(f"{item.name} ({item.reason})" for item in candidates)


def _recorded_elsewhere(adapter: Adapter, recorded: str) -> Iterator[Candidate]:
    """The ids in a recorded cache path and in the trainer's configuration."""
    if identity := cached_identity(recorded):
        yield Candidate(identity.model_id, "the id in the recorded path", 0)
    training = read_training(adapter.folder)
    name = training.base if training is not None else None
    # The trainer's configuration may also record a path of the training machine.
    if training and name and name != recorded and (is_hub_id(name) or existing_folder(name)):
        yield Candidate(name, f"named in {training.known_by.name}", 0)


def _fitting_places(adapter: Adapter, recorded: str) -> Iterator[Candidate]:
    """The model folders that have the adapter's shapes or the recorded name."""
    wanted = _wanted_shapes(adapter.weights)
    wanted_name = re.split(r"[/\\]", recorded.rstrip("/\\"))[-1].lower()
    for place in (*_places(adapter.folder), *_namesakes(adapter.folder, recorded)):
        if place.name == recorded:
            continue
        fits = _fits(place.folder, wanted) if wanted else None
        is_namesake = wanted_name in (
            place.name.rpartition("/")[2].lower(), place.folder.name.lower()
        )  # fmt: skip
        if fits or (fits is None and is_namesake):
            reasons = [
                *(["its shapes fit"] if fits else []),
                *(["it has the recorded name"] if is_namesake else []),
            ]
            rank = _NAMESAKE if is_namesake else _NAMESAKE + 1
            yield Candidate(place.name, " and ".join(reasons), rank)


def _wanted_shapes(weights: TensorFile) -> dict[str, _Shape]:
    """The shape of each module that a LoRA targets, by its weight's name."""
    wanted: dict[str, _Shape] = {}
    for name, info in weights.tensors.items():
        if (match := _LORA.fullmatch(name)) and len(info.shape) == 2:
            out_features, in_features = wanted.get(f"{match[1]}.weight", (None, None))
            if match[2] == "A":
                in_features = info.shape[1]
            else:
                out_features = info.shape[0]
            wanted[f"{match[1]}.weight"] = (out_features, in_features)
    return wanted


def _fits(folder: Path, wanted: Mapping[str, _Shape]) -> bool | None:
    """Whether a model has every targeted weight in its shape; None if it cannot be read."""
    try:
        tensors = FolderCheckpoint(folder).tensors
    except (FtpackError, OSError):
        return None
    shapes = [tensors[name].shape if name in tensors else None for name in wanted]
    return all(
        shape == expected or shape == expected[::-1]
        for shape, expected in zip(shapes, wanted.values(), strict=True)
    )


def _places(folder: Path) -> Iterator[_Place]:
    """Model folders: those of the Hugging Face cache by id, and those near the adapter by path."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    examined = 0
    for config in sorted(cache.glob(f"models--*/snapshots/*/{CONFIG_NAME}")):
        identity = cached_identity(str(config.parent))
        if identity is not None and examined < _MOST_EXAMINED:
            examined += 1
            yield _Place(identity.model_id, config.parent)
    here = folder.resolve()
    for place in (here.parent, here.parent.parent):
        for config in sorted(place.glob(f"*/{CONFIG_NAME}"))[:_MOST_EXAMINED]:
            if config.parent != here and _is_model(config.parent):
                yield _Place(str(config.parent), config.parent)


def _namesakes(folder: Path, recorded: str) -> Iterator[_Place]:
    """Model folders by the end of the recorded path, as in a project that was moved.

    The search covers the adapter's folder, those above it, and the working directory.
    """
    parts = [part for part in re.split(r"[/\\]", recorded) if part not in ("", ".", "..")]
    here = folder.resolve()
    for place in (here, *here.parents, Path.cwd()):
        for start in range(max(0, len(parts) - _MOST_PARTS), len(parts)):
            model = existing_folder(str(place.joinpath(*parts[start:])))
            if model is not None and _is_model(model):
                yield _Place(str(model), model)


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and not (folder / ADAPTER_CONFIG_NAME).exists()
