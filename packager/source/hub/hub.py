"""Models of the Hugging Face Hub: from the local cache, else downloaded."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.errors import SourceNotFoundError
from packager.progress import Progress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# The files that packaging needs; `allowed_patterns` adds pickled weights where it needs them.
_ALLOWED = (
    "*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*",
    "*.md",
)  # fmt: skip
IGNORED = ("original/*", "consolidated*", "onnx/*", "runs/*", "checkpoint-*/*")
# Pickled weights, and the files that replace them in repositories with safetensors.
_PICKLED = re.compile(r"(adapter|pytorch)_model(-\d+-of-\d+)?\.bin")
_UNPICKLED = {
    "adapter": ("adapter_model.safetensors",),
    "pytorch": ("model.safetensors", "model.safetensors.index.json"),
}
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class HubFolder:
    """A snapshot of a repository in the local cache, and whether it was there before."""

    folder: Path
    model_id: str
    revision: str
    was_cached: bool


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form of a Hub id (`owner/name`, or a legacy `name`)."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text


def allowed_patterns(names: Iterable[str]) -> list[str]:
    """Patterns for the files of a repository that packaging needs, without any weights twice.

    Args:
        names: the repository's files. Pickled weights are needed in those of its folders that have
            no safetensors.
    """
    existing = set(names)
    pickled = []
    for name in sorted(existing):
        folder, _, file = name.rpartition("/")
        if (match := _PICKLED.fullmatch(file)) is not None:
            places = (f"{folder}/{other}".lstrip("/") for other in _UNPICKLED[match[1]])
            if not existing.intersection(places):
                pickled.append(glob.escape(name))
    return [*_ALLOWED, *pickled]


def obtain(
    model_id: str, revision: str | None, is_complete: Callable[[Path], bool], progress: Progress
) -> HubFolder:
    """A complete snapshot: from the local cache, else downloaded or completed.

    Args:
        model_id: the repository's id.
        revision: a branch, tag or commit of it.
        is_complete: whether a folder of the cache needs no more files.
        progress: receives what is missing and downloaded.

    Raises:
        SourceNotFoundError: with the Hub's answer, and what to do about it.
    """
    cached = find_cached(model_id, revision)
    if cached is not None and is_complete(cached.folder):
        return _with_tokenizer(cached, progress)
    state = "not" if cached is None else "only partly"
    if cached is not None:
        progress.note(f"{model_id} is {state} in the Hugging Face cache")
    try:
        return download(model_id, revision, progress)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(
            f"{model_id} is {state} in the Hugging Face cache. {error.message}",
            next_step=error.next_step,
        ) from error


def _with_tokenizer(cached: HubFolder, progress: Progress) -> HubFolder:
    """A snapshot with its tokenizer and chat template, if the Hub has them at that commit.

    Loading an adapter through PEFT, or only the weights of a model, leaves no other files in the
    cache; packaged like that, they would get the base's chat template, or none.
    """
    if next(cached.folder.rglob("tokenizer*"), None) is not None:
        return cached
    try:
        return download(cached.model_id, cached.revision, progress)
    except SourceNotFoundError as error:
        progress.warn(
            f"{cached.model_id} is in the Hugging Face cache without a tokenizer; it is unknown "
            f"whether the Hub has one. {error.message}"
        )
        return cached


def find_cached(model_id: str, revision: str | None) -> HubFolder | None:
    """The newest snapshot in the local cache, complete or not, or None; never uses the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Request no file: otherwise the Hub's own check misses those that packaging does not need.
        snapshot = snapshot_download(
            model_id, revision=revision, local_files_only=True, allow_patterns=[]
        )
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None
    folder = Path(snapshot)
    return HubFolder(folder, model_id, folder.name, was_cached=True)


def find_file(model_id: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository, from the local cache or the Hub; None if it is not available."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model_id, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def download(model_id: str, revision: str | None, progress: Progress) -> HubFolder:
    """Download the files of a repository that packaging needs; resumes a partial download.

    Raises:
        SourceNotFoundError: with the Hub's answer, and what to do about it.
    """
    progress.note(f"Downloading {model_id}{f' at {revision}' if revision else ''} from the Hub")
    allowed = allowed_patterns(list_files(model_id, revision))
    return download_files(model_id, revision, allowed, IGNORED)


def list_files(model_id: str, revision: str | None) -> list[str]:
    """The names of a repository's files.

    Raises:
        SourceNotFoundError: with the Hub's answer, and what to do about it.
    """
    from huggingface_hub import model_info

    with _answers(model_id):
        siblings = model_info(model_id, revision=revision).siblings
    return [file.rfilename for file in siblings or ()]


def download_files(
    model_id: str, revision: str | None, allowed: Sequence[str], ignored: Sequence[str]
) -> HubFolder:
    """Download the files of a repository that match a pattern into the local cache.

    Raises:
        SourceNotFoundError: with the Hub's answer, and what to do about it.
    """
    from huggingface_hub import snapshot_download

    with _answers(model_id):
        folder = Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=list(allowed),
                ignore_patterns=list(ignored),
            )
        )
    return HubFolder(folder, model_id, folder.name, was_cached=False)


@contextmanager
def _answers(model_id: str) -> Iterator[None]:
    """Turn an error of the Hub's client into one that says what to do about it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    next_steps: tuple[tuple[type[Exception], str], ...] = (
        (GatedRepoError, f"Accept the licence on the page of {model_id}, then `hf auth login`."),
        (RevisionNotFoundError, "Name a branch, tag or commit that exists with --revision."),
        (RepositoryNotFoundError, "Check the id; for a private one, `hf auth login` first."),
        (HFValidationError, "Name a folder, or an id of the form owner/name."),
        (OfflineModeIsEnabled, "Unset HF_HUB_OFFLINE, or name a local folder."),
        (LocalEntryNotFoundError, "Check the network connection, or name a local folder."),
        (HfHubHTTPError, "Try again later, or name a local folder."),
        # Its base classes are OSError and that of the HTTP client, which differs by version.
        *(
            (kind, "Check the network connection, or name a local folder.")
            for kind in HfHubHTTPError.__bases__
        ),
    )
    try:
        yield
    except tuple(kind for kind, _ in next_steps) as error:
        hint = next(step for kind, step in next_steps if isinstance(error, kind))
        # Its first line is the status; the reason is in another one.
        reason = " ".join(str(error).split())[:_MOST_CHARACTERS] or type(error).__name__
        raise SourceNotFoundError(
            f"{model_id} could not be downloaded from the Hugging Face Hub: {reason.rstrip('.')}.",
            next_step=hint,
        ) from error
