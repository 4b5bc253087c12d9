"""Bases that fit an adapter whose recorded base is gone: offered by name, never taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.errors import FtpackError
from packager.files import existing_folder
from packager.model.checkpoint import FolderCheckpoint
from packager.model.tensor_file import TensorFile
from packager.source.hub.hub import is_hub_id
from packager.source.hub.identity import cached_identity
from packager.source.run.record import read_training

_MOST_LOOKED_AT, _MOST_OFFERED, _MOST_PARTS = 200, 4, 4
# The rank of what has the recorded name.
_NAMESAKE = 1
_LORA = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")


@dataclass(frozen=True)
class Candidate:
    """A model that may be the base.

    Attributes:
        name: what to write after `--base`.
        reason: why it is offered, in words.
        rank: how well it fits; less is better.
    """

    name: str
    reason: str
    rank: int


def find_candidates(folder: Path, weights: TensorFile, recorded: str) -> list[Candidate]:
    """Models that fit an adapter, the likeliest first: in the cache, and beside the adapter.

    Only headers are read. Shapes alone tell no base from its instruction-tuned twin: somebody who
    knows has to choose.

    Args:
        folder: the adapter's folder.
        weights: the adapter's tensors.
        recorded: the base that it names; empty where it names none.
    """
    found = []
    if cached := cached_identity(recorded):
        found.append(Candidate(cached[0], "by the recorded path's own words", 0))
    training = read_training(folder)
    named = training.base if training is not None else None
    # The run's configuration may name a path of its own machine, too.
    if training and named and named != recorded and (is_hub_id(named) or existing_folder(named)):
        found.append(Candidate(named, f"named in {training.known_by.name}", 0))
    wanted = _wanted_shapes(weights)
    wanted_name = re.split(r"[/\\]", recorded.rstrip("/\\"))[-1].lower()
    for name, path in (*_places(folder), *_namesakes(folder, recorded)):
        if name == recorded:
            continue
        fits = _fits(path, wanted) if wanted else None
        is_namesake = wanted_name in (name.rpartition("/")[2].lower(), path.name.lower())
        if fits or (fits is None and is_namesake):
            known = ("its shapes fit",) if fits else ()
            reasons = (*known, "it has the recorded name") if is_namesake else known
            found.append(
                Candidate(name, " and ".join(reasons), _NAMESAKE if is_namesake else _NAMESAKE + 1)
            )
    unique = {item.name: item for item in sorted(found, key=lambda item: -item.rank)}
    return sorted(unique.values(), key=lambda item: (item.rank, item.name))[:_MOST_OFFERED]


def find_namesakes(folder: Path, weights: TensorFile, recorded: str) -> list[Candidate]:
    """Those of the candidates that are folders here, under the recorded name."""
    found = find_candidates(folder, weights, recorded)
    return [item for item in found if item.rank == _NAMESAKE and existing_folder(item.name)]


def offered(candidates: Sequence[Candidate]) -> str:
    """The candidates, each with its reason."""
    return "; ".join(f"{item.name} ({item.reason})" for item in candidates)


def _wanted_shapes(weights: TensorFile) -> dict[str, tuple[int | None, int | None]]:
    """`[out_features, in_features]` of each module that a LoRA targets, by its weight's name."""
    wanted: dict[str, tuple[int | None, int | None]] = {}
    for name, info in weights.tensors.items():
        if (match := _LORA.fullmatch(name)) and len(info.shape) == 2:
            out_features, in_features = wanted.get(f"{match[1]}.weight", (None, None))
            if match[2] == "A":
                in_features = info.shape[1]
            else:
                out_features = info.shape[0]
            wanted[f"{match[1]}.weight"] = (out_features, in_features)
    return wanted


def _fits(folder: Path, wanted: Mapping[str, tuple[int | None, int | None]]) -> bool | None:
    """Whether every targeted weight is there in its shape; None where nobody can tell."""
    try:
        tensors = FolderCheckpoint(folder).tensors
    except (FtpackError, OSError):
        return None
    shapes = [tensors[name].shape if name in tensors else None for name in wanted]
    return all(
        shape == expected or shape == expected[::-1]
        for shape, expected in zip(shapes, wanted.values(), strict=True)
    )


def _places(folder: Path) -> Iterator[tuple[str, Path]]:
    """Model folders: of the Hugging Face cache by id, and near the adapter by path."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    looked_at = 0
    for config in sorted(cache.glob("models--*/snapshots/*/config.json")):
        identity = cached_identity(str(config.parent))
        if identity is not None and looked_at < _MOST_LOOKED_AT:
            looked_at += 1
            yield identity[0], config.parent
    here = folder.resolve()
    for place in (here.parent, here.parent.parent):
        for config in sorted(place.glob("*/config.json"))[:_MOST_LOOKED_AT]:
            if config.parent != here and _is_model(config.parent):
                yield str(config.parent), config.parent


def _namesakes(folder: Path, recorded: str) -> Iterator[tuple[str, Path]]:
    """Model folders by the end of the recorded path, as a project has them that was moved.

    They are looked for in the adapter's folder, in those above it, and in the working directory.
    """
    parts = [part for part in re.split(r"[/\\]", recorded) if part not in ("", ".", "..")]
    here = folder.resolve()
    for place in (here, *here.parents, Path.cwd()):
        for start in range(max(0, len(parts) - _MOST_PARTS), len(parts)):
            found = existing_folder(str(place.joinpath(*parts[start:])))
            if found is not None and _is_model(found):
                yield str(found), found


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists()
