"""One of a Trainer's checkpoints in a repository of the Hub or ModelScope: it alone is fetched."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from packager.errors import SourceNotFoundError
from packager.progress import Progress
from packager.source.hub.completeness import is_whole_source
from packager.source.hub.hub import (
    HubFolder,
    allowed_patterns,
    download_files,
    find_cached,
    list_files,
)
from packager.source.run.checkpoints import CHECKPOINT_PREFIXES, choose_checkpoint, list_checkpoints

# What tells the checkpoints, and which of them is the best one; the card tells the trainer.
_TELLING = ("adapter_config.json", "config.json", "trainer_state.json")
_TELLING_ABOVE = ("README.md", "trainer_log.jsonl", "trainer_state.json")


def obtain_checkpoint(
    model_id: str, revision: str | None, wanted: str, progress: Progress
) -> HubFolder:
    """A snapshot of the Hub that has the checkpoint `wanted` (a step, `best` or `last`).

    A step that is in the local cache is taken from there; which is the best or the last one, the
    Hub has to tell.

    Raises:
        SourceNotFoundError: if there is no such checkpoint, or saying what the Hub answered.
    """
    cached = find_cached(model_id, revision)
    if cached is not None:
        here = [item for item in list_checkpoints(cached.folder) if str(item.step) == wanted]
        if here and is_whole_source(here[0].folder):
            return cached
    progress.note(f"Downloading checkpoint {wanted} of {model_id} from the Hub")

    def fetch(allowed: Sequence[str]) -> Path:
        return download_files(model_id, revision, allowed, ()).folder

    folder = fetch_checkpoint(model_id, wanted, list_files(model_id, revision), fetch)
    return HubFolder(folder, model_id, folder.name, was_cached=False)


def fetch_checkpoint(
    model_id: str, wanted: str, names: Sequence[str], fetch: Callable[[Sequence[str]], Path]
) -> Path:
    """A folder with one checkpoint's files, and with those of the others that tell them apart.

    Args:
        model_id: the repository's, for messages.
        wanted: a step, `best` or `last`.
        names: the repository's files.
        fetch: has the files that fit patterns come, into a folder that is always the same.

    Raises:
        SourceNotFoundError: listing the checkpoints that there are.
    """
    inside = [name for name in names if _is_telling(name)]
    if not inside:
        raise SourceNotFoundError(
            f"{model_id} has no checkpoint {wanted!r}: there is no folder checkpoint-N in its "
            "repository.",
            next_step="Leave --checkpoint away: what is at its top is then packaged.",
        )
    folder = fetch([*map(glob.escape, inside), *_TELLING_ABOVE])
    chosen, _ = choose_checkpoint(folder, wanted)
    start = f"{chosen.folder.name}/"
    own = [name.removeprefix(start) for name in names if name.startswith(start)]
    return fetch([start + pattern for pattern in allowed_patterns(own)])


def _is_telling(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.startswith(CHECKPOINT_PREFIXES) and "/" not in folder and file in _TELLING
