"""A stand-in for the Hugging Face Hub: repositories by id, and what was asked of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories, from which files come into a cache in the layout that the Hub documents.

    Attributes:
        cache: the local cache.
        repositories: each one's files, by the name in it.
        downloaded: the files that came, as `id/name`, in the order of coming.
        revisions: the revisions that were asked for, of lists and of files.
        failure: raised in place of any answer.
    """

    cache: Path
    repositories: dict[str, Mapping[str, Path | bytes]] = field(default_factory=dict)
    downloaded: list[str] = field(default_factory=list)
    revisions: list[str | None] = field(default_factory=list)
    failure: Exception | None = None

    def put_folder(self, model_id: str, folder: Path) -> None:
        """A repository with the files of a folder."""
        self.repositories[model_id] = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file()
        }

    def snapshot(self, model_id: str) -> Path:
        """Where the files of a repository are in the cache."""
        return self.cache / f"models--{model_id.replace('/', '--')}" / "snapshots" / COMMIT

    def keep(self, model_id: str, *names: str) -> None:
        """Have these files of a repository in the cache, as after an interrupted download."""
        for name in names:
            content = self.repositories[model_id][name]
            data = content if isinstance(content, bytes) else content.read_bytes()
            path = self.snapshot(model_id) / name
            blob = self.snapshot(model_id).parents[1] / "blobs" / hashlib.sha256(data).hexdigest()
            path.parent.mkdir(parents=True, exist_ok=True)
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(data)
            path.unlink(missing_ok=True)
            path.symlink_to(os.path.relpath(blob, path.parent))
        refs = self.snapshot(model_id).parent.parent / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / "main").write_text(COMMIT)

    def answer(self, model_id: str, revision: str | None) -> Mapping[str, Path | bytes]:
        self.revisions.append(revision)
        if self.failure is not None:
            raise self.failure
        if model_id not in self.repositories:
            raise LocalEntryNotFoundError(f"404 {model_id}")
        return self.repositories[model_id]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub in the place of the real one, and an empty cache."""
    made = Hub(tmp_path / "hub")
    made.cache.mkdir()
    of_the_cache = huggingface_hub.snapshot_download

    def model_info(model_id: str, *, revision: str | None = None) -> SimpleNamespace:
        files = made.answer(model_id, revision)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    def snapshot_download(
        model_id: str,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None = None,
    ) -> str:
        if local_files_only:
            return str(
                of_the_cache(
                    model_id, revision=revision, local_files_only=True,
                    allow_patterns=allow_patterns, ignore_patterns=ignore_patterns,
                )
            )  # fmt: skip
        files = made.answer(model_id, revision)
        for name in filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            if not (made.snapshot(model_id) / name).exists():
                made.keep(model_id, name)
                made.downloaded.append(f"{model_id}/{name}")
        return str(made.snapshot(model_id))

    def hf_hub_download(model_id: str, name: str, *, revision: str | None = None) -> str:
        made.answer(model_id, revision)
        made.keep(model_id, name)
        made.downloaded.append(f"{model_id}/{name}")
        return str(made.snapshot(model_id) / name)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return made
