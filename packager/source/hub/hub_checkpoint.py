"""One training checkpoint in a repository of the Hub or ModelScope, downloaded alone."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from packager.errors import SourceNotFoundError
from packager.progress import Progress
from packager.source.hub.completeness import is_complete_source
from packager.source.hub.hub import (
    HubFolder,
    allowed_patterns,
    download_files,
    find_cached,
    list_files,
)
from packager.source.run.checkpoints import CHECKPOINT_PREFIXES, choose_checkpoint, list_checkpoints

# Files that list the training checkpoints and the best of them; the card shows the trainer.
_RECORDS = ("adapter_config.json", "config.json", "trainer_state.json")
_RECORDS_ABOVE = ("README.md", "trainer_log.jsonl", "trainer_state.json")


def obtain_checkpoint(
    model_id: str, revision: str | None, wanted: str, progress: Progress
) -> HubFolder:
    """A snapshot of the Hub that has the training checkpoint `wanted` (a step, `best` or `last`).

    A step in the local cache is used from there; only the Hub knows the best or the last one.

    Raises:
        SourceNotFoundError: if there is no such training checkpoint, or with the Hub's answer.
    """
    cached = find_cached(model_id, revision)
    if cached is not None:
        own = [item for item in list_checkpoints(cached.folder) if str(item.step) == wanted]
        if own and is_complete_source(own[0].folder):
            return cached
    progress.note(f"Downloading training checkpoint {wanted} of {model_id} from the Hub")

    def fetch(allowed: Sequence[str]) -> Path:
        return download_files(model_id, revision, allowed, ()).folder

    folder = fetch_checkpoint(model_id, wanted, list_files(model_id, revision), fetch)
    return HubFolder(folder, model_id, folder.name, was_cached=False)


def fetch_checkpoint(
    model_id: str, wanted: str, names: Sequence[str], fetch: Callable[[Sequence[str]], Path]
) -> Path:
    """A folder with the files of one training checkpoint, and the records of the others.

    Args:
        model_id: the repository's id, for messages.
        wanted: a step, `best` or `last`.
        names: the repository's files.
        fetch: downloads the files that match patterns, always into the same folder.

    Raises:
        SourceNotFoundError: with the training checkpoints that exist.
    """
    records = [name for name in names if _is_record(name)]
    if not records:
        raise SourceNotFoundError(
            f"{model_id} has no training checkpoint {wanted!r}: its repository has no folder "
            "checkpoint-N.",
            next_step="Omit --checkpoint to package what is at the top of the repository.",
        )
    folder = fetch([*map(glob.escape, records), *_RECORDS_ABOVE])
    chosen = choose_checkpoint(folder, wanted).checkpoint
    start = f"{chosen.folder.name}/"
    own = [name.removeprefix(start) for name in names if name.startswith(start)]
    return fetch([start + pattern for pattern in allowed_patterns(own)])


def _is_record(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.startswith(CHECKPOINT_PREFIXES) and "/" not in folder and file in _RECORDS
