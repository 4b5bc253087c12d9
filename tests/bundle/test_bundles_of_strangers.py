"""A bundle from someone else: only files in its folder are read, and no value is guessed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from packager.bundle.bundle import read_bundle, verify_bundle, write_bundle
from packager.errors import CorruptFileError, UsageError
from packager.progress import Silent
from packager.verbs.modelfile import modelfile
from packager.verbs.run import ChatOptions, run
from tests.bundle.test_bundle import MANIFEST
from tests.requests import request_for


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, MANIFEST, "FROM ./x.gguf\n")
    return folder


def test_a_modelfile_that_links_to_a_file_outside_the_folder_is_not_shown(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (bundle / "Modelfile").unlink()
    (bundle / "Modelfile").symlink_to(tmp_path / "secret")

    with pytest.raises(CorruptFileError, match=re.escape(str(bundle / "Modelfile"))):
        modelfile(request_for(bundle))


def test_a_modelfile_that_is_not_text_is_refused(bundle: Path) -> None:
    (bundle / "Modelfile").write_bytes(b"\xff\xfe")

    with pytest.raises(CorruptFileError, match="Modelfile"):
        modelfile(request_for(bundle))


@pytest.mark.parametrize("context", ["x", 0, -5, 0.5, True, 1 << 40])
def test_a_context_that_is_not_a_number_of_tokens_is_refused(
    context: int | float | str, bundle: Path
) -> None:
    (bundle / read_bundle(bundle).ggufs[0].name).touch()

    with pytest.raises(UsageError, match="num_ctx"):
        run(bundle, ChatOptions(max_tokens=1, threads=1, parameters={"num_ctx": context}))


def test_checksums_that_are_not_a_plain_file_are_refused(bundle: Path) -> None:
    (bundle / "SHA256SUMS").unlink()
    os.mkfifo(bundle / "SHA256SUMS")

    with pytest.raises(CorruptFileError, match="SHA256SUMS"):
        verify_bundle(read_bundle(bundle), Silent())
