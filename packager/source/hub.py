"""Model folders by Hugging Face Hub id: from the local cache, else downloaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packager.errors import SourceNotFoundError
from packager.progress import Progress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What packaging needs, and no second copy of the weights in another format.
ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "*.md")
IGNORED = ("original/*", "consolidated*", "onnx/*", "checkpoint-*/*", "runs/*")


@dataclass(frozen=True)
class HubFolder:
    """A snapshot of a repository in the local cache."""

    folder: Path
    model_id: str
    revision: str
    was_cached: bool


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form of a Hub id (`owner/name`, or a legacy `name`)."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text


def find_cached(model_id: str, revision: str | None) -> HubFolder | None:
    """The newest snapshot in the local cache, or None; no network is used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None
    return HubFolder(folder, model_id, folder.name, was_cached=True)


def find_file(model_id: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository from the local cache, else the Hub; None where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model_id, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def download(model_id: str, revision: str | None, progress: Progress) -> HubFolder:
    """Download what packaging needs of a repository; an interrupted download goes on.

    Raises:
        SourceNotFoundError: saying what the Hub answered, and what to do about it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    progress.note(f"Downloading {model_id}{f' at {revision}' if revision else ''} from the Hub")
    next_steps: tuple[tuple[type[Exception], str], ...] = (
        (GatedRepoError, f"Accept the licence on the page of {model_id}, then `hf auth login`."),
        (RevisionNotFoundError, "Name a branch, tag or commit that exists with --revision."),
        (RepositoryNotFoundError, "Check the id; for a private one, `hf auth login` first."),
        (HFValidationError, "Name a folder, or an id of the form owner/name."),
        (OfflineModeIsEnabled, "Unset HF_HUB_OFFLINE, or name a local folder."),
        (LocalEntryNotFoundError, "Check the network connection, or name a local folder."),
        (HfHubHTTPError, "Try again later, or name a local folder."),
        (OSError, "Check the network connection, or name a local folder."),
    )
    try:
        folder = Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=list(ALLOWED),
                ignore_patterns=list(IGNORED),
            )
        )
    except tuple(kind for kind, _ in next_steps) as error:
        hint = next(step for kind, step in next_steps if isinstance(error, kind))
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceNotFoundError(
            f"{model_id} could not be had from the Hugging Face Hub: {reason}", next_step=hint
        ) from error
    return HubFolder(folder, model_id, folder.name, was_cached=False)
