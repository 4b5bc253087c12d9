"""Models of ModelScope (`modelscope://ORG/NAME`), downloaded by its own client."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packager.errors import FtpackError, SourceNotFoundError, ToolchainError, first_line
from packager.progress import Progress
from packager.source.hub.hub import IGNORED, allowed_patterns, is_hub_id
from packager.source.hub.hub_checkpoint import fetch_checkpoint

SCHEME = "modelscope://"


def download_from_modelscope(
    name: str, revision: str | None, progress: Progress, checkpoint: str | None = None
) -> Path:
    """The folder of a model, from the client's cache or downloaded.

    Args:
        name: `modelscope://ORG/NAME`.
        revision: a branch, tag or commit of its repository.
        progress: receives the download.
        checkpoint: a training checkpoint (a step, `best` or `last`), instead of the final save.

    Raises:
        SourceNotFoundError: if it is not an id, if there is no such training checkpoint, or with
            ModelScope's answer.
        ToolchainError: if the client is not installed, with the command that installs it.
    """
    model_id = name.removeprefix(SCHEME).strip("/")
    if not is_hub_id(model_id) or "/" not in model_id:
        raise SourceNotFoundError(
            f"{name!r} is not a ModelScope id.", next_step=f"Write {SCHEME}ORG/NAME."
        )
    try:
        client: Any = importlib.import_module("modelscope")
    except ImportError as error:
        raise ToolchainError(
            f"{name} needs the package modelscope, which is not installed ({error}).",
            next_step="pip install 'ftpack[modelscope]' (or: pip install modelscope).",
        ) from error
    progress.note(f"Asking ModelScope for {model_id}{f' at {revision}' if revision else ''}")

    def fetch(allowed: Sequence[str], ignored: Sequence[str] = ()) -> Path:
        folder = client.snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=list(allowed),
            ignore_patterns=list(ignored),
        )
        return Path(folder)

    try:
        names = _list_files(client.HubApi(), model_id, revision)
        if checkpoint is not None:
            return fetch_checkpoint(name, checkpoint, names, fetch)
        return fetch(allowed_patterns(names), IGNORED)
    except FtpackError:
        raise
    # The client raises the errors of requests, of its own hub and of the file system.
    except Exception as error:
        raise SourceNotFoundError(
            f"{model_id} could not be downloaded from ModelScope: {first_line(error)}",
            next_step="Check the id and the network (`modelscope login` for a private one), or "
            "name a local folder.",
        ) from error


def _list_files(api: Any, model_id: str, revision: str | None) -> list[str]:
    """The names of a repository's files; a private repository needs a login."""

    def ask(use_cookies: bool) -> list[str]:
        files = api.get_model_files(
            model_id, revision=revision, recursive=True, use_cookies=use_cookies
        )
        return [str(file["Path"]) for file in files]

    try:
        return ask(use_cookies=True)
    # No login.
    except ValueError:
        return ask(use_cookies=False)
