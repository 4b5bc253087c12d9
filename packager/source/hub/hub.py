"""Model folders by Hugging Face Hub id: from the local cache, else downloaded."""

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
# What packaging needs; of the weights in another format see `allowed_patterns`.
_ALLOWED = (
    "*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*",
    "*.md",
)  # fmt: skip
IGNORED = ("original/*", "consolidated*", "onnx/*", "runs/*", "checkpoint-*/*")
# Weights as pickles, and what stands in their place where there are safetensors.
_PICKLED = re.compile(r"(adapter|pytorch)_model(-\d+-of-\d+)?\.bin")
_UNPICKLED = {
    "adapter": ("adapter_model.safetensors",),
    "pytorch": ("model.safetensors", "model.safetensors.index.json"),
}
_SHOWN_CHARACTERS = 300


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


def allowed_patterns(names: Iterable[str]) -> list[str]:
    """Patterns of what packaging needs of a repository, with no weights twice.

    Args:
        names: the repository's files. Pickled weights are wanted in those of its folders that have
            none as safetensors.
    """
    there = set(names)
    pickled = []
    for name in sorted(there):
        folder, _, file = name.rpartition("/")
        if (match := _PICKLED.fullmatch(file)) is not None:
            places = (f"{folder}/{other}".lstrip("/") for other in _UNPICKLED[match[1]])
            if not there.intersection(places):
                pickled.append(glob.escape(name))
    return [*_ALLOWED, *pickled]


def obtain(
    model_id: str, revision: str | None, is_whole: Callable[[Path], bool], progress: Progress
) -> HubFolder:
    """A snapshot that has what is needed: of the local cache, else downloaded or completed.

    Args:
        model_id: the repository's.
        revision: a branch, tag or commit of it.
        is_whole: whether a folder of the cache needs nothing more.
        progress: where it is told.

    Raises:
        SourceNotFoundError: saying what the Hub answered, and what to do about it.
    """
    cached = find_cached(model_id, revision)
    if cached is not None and is_whole(cached.folder):
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

    Who loads an adapter by PEFT, or a model's weights alone, has in the cache no more than those;
    packaged as they are, they would get the base's chat template, or none.
    """
    if next(cached.folder.rglob("tokenizer*"), None) is not None:
        return cached
    try:
        return download(cached.model_id, cached.revision, progress)
    except SourceNotFoundError as error:
        progress.warn(
            f"{cached.model_id} is in the Hugging Face cache without a tokenizer, and whether it "
            f"has one is not known. {error.message}"
        )
        return cached


def find_cached(model_id: str, revision: str | None) -> HubFolder | None:
    """The newest snapshot in the local cache, whole or not, or None; no network is used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # No file is asked for: the Hub's own check would miss those that packaging leaves out.
        snapshot = snapshot_download(
            model_id, revision=revision, local_files_only=True, allow_patterns=[]
        )
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None
    folder = Path(snapshot)
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
    progress.note(f"Downloading {model_id}{f' at {revision}' if revision else ''} from the Hub")
    allowed = allowed_patterns(list_files(model_id, revision))
    return download_files(model_id, revision, allowed, IGNORED)


def list_files(model_id: str, revision: str | None) -> list[str]:
    """The names of a repository's files.

    Raises:
        SourceNotFoundError: saying what the Hub answered, and what to do about it.
    """
    from huggingface_hub import model_info

    with _answers(model_id):
        siblings = model_info(model_id, revision=revision).siblings
    return [file.rfilename for file in siblings or ()]


def download_files(
    model_id: str, revision: str | None, allowed: Sequence[str], ignored: Sequence[str]
) -> HubFolder:
    """Have the files of a repository that fit a pattern, and no other one, in the local cache.

    Raises:
        SourceNotFoundError: saying what the Hub answered, and what to do about it.
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
    """What the Hub answers instead of files, as an error that says what to do about it."""
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
        # Its own kinds are those of the HTTP client, which versions have changed, and OSError.
        *(
            (kind, "Check the network connection, or name a local folder.")
            for kind in HfHubHTTPError.__bases__
        ),
    )
    try:
        yield
    except tuple(kind for kind, _ in next_steps) as error:
        hint = next(step for kind, step in next_steps if isinstance(error, kind))
        # Its first line is the status, and the reason another one.
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS] or type(error).__name__
        raise SourceNotFoundError(
            f"{model_id} could not be had from the Hugging Face Hub: {reason.rstrip('.')}.",
            next_step=hint,
        ) from error
