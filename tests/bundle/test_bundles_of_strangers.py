"""A bundle from someone else: what it names is read, nothing beside it, and no value is guessed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packager.bundle.bundle import read_bundle, verify_bundle, write_bundle
from packager.errors import CorruptFileError, UsageError
from packager.package.plan import Request
from packager.progress import Silent
from packager.verbs.modelfile import modelfile_of
from packager.verbs.run import open_chat
from tests.bundle.test_bundle import MANIFEST


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, MANIFEST, "FROM ./x.gguf\n")
    return folder


def test_a_modelfile_that_leads_out_of_the_folder_is_not_shown(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (bundle / "Modelfile").unlink()
    (bundle / "Modelfile").symlink_to(tmp_path / "secret")

    with pytest.raises(CorruptFileError, match="outside its folder"):
        modelfile_of(Request(str(bundle)), "./x.gguf", Silent())


def test_a_modelfile_that_is_no_text(bundle: Path) -> None:
    (bundle / "Modelfile").write_bytes(b"\xff\xfe")

    with pytest.raises(CorruptFileError, match="Modelfile"):
        modelfile_of(Request(str(bundle)), "./x.gguf", Silent())


@pytest.mark.parametrize("context", ["x", 0, -5, 0.5, True, 1 << 40])
def test_a_context_that_is_none(context: int | float | str, bundle: Path) -> None:
    (bundle / read_bundle(bundle).ggufs[0].name).touch()

    with pytest.raises(UsageError, match="num_ctx"):
        open_chat(bundle, None, None, 1, 1, {"num_ctx": context})


def test_checksums_that_are_no_file(bundle: Path) -> None:
    (bundle / "SHA256SUMS").unlink()
    os.mkfifo(bundle / "SHA256SUMS")

    with pytest.raises(CorruptFileError, match="no plain file"):
        verify_bundle(bundle)
