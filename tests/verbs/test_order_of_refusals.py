"""What can be refused at once is refused before a base is found, a file hashed, a weight read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from packager.errors import DiskSpaceError, SourceNotFoundError, UsageError
from packager.package.prepare import open_inputs
from packager.progress import Silent, Task
from packager.verbs.gguf import gguf
from packager.verbs.merge import merge
from tests.command import ftpack
from tests.requests import request_for

# The discard port, on which no Ollama answers.
NOBODY = "127.0.0.1:9"


def test_an_unknown_preset_is_refused_before_the_source_is_opened() -> None:
    with pytest.raises(UsageError, match="no-such-preset"):
        open_inputs(request_for("no-such-source", preset="no-such-preset"), Silent())


def test_a_missing_chat_template_is_refused_before_the_source_is_opened(tmp_path: Path) -> None:
    template = tmp_path / "none.jinja"
    with pytest.raises(SourceNotFoundError, match=r"none\.jinja"):
        open_inputs(request_for("no-such-source", chat_template_file=template), Silent())


def test_a_missing_gpu_is_refused_before_the_source_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="cuda"):
        open_inputs(request_for("no-such-source", device="cuda"), Silent())


def test_merge_refuses_a_full_disk_before_it_measures(
    small_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("packager.verbs.merge.measure_base_choice", measure)
    monkeypatch.setattr("packager.files.shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(DiskSpaceError):
        merge(request_for(small_model("llama")), tmp_path / "merged")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--name", "mine"), 4),  # no server answers
        (("--name", "not a name"), 2),
        ((), 4),
    ],
)
def test_register_asks_for_name_and_server_before_it_hashes(
    damaged_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    result = ftpack("register", damaged_bundle, *arguments, host=NOBODY, folder=tmp_path)

    assert result.returncode == code, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--against", NOBODY), 4), (("--show", "999"), 2)]
)
def test_prompt_asks_for_the_server_and_the_number_before_it_opens_the_source(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    result = ftpack("prompt", "no-such-source", *arguments, host=NOBODY, folder=tmp_path)

    assert result.returncode == code, result.stderr


def test_files_of_an_earlier_run_are_checked_with_progress(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    request = request_for(small_model("llama"), ["q8_0"], "m", tmp_path / "m-gguf")
    first = gguf(request)
    progress = Advances()
    again = gguf(request, progress)

    assert again.reused == ("m-Q8_0.gguf",)
    size_bytes = first.bundle.ggufs[0].size_bytes
    assert (size_bytes, size_bytes) in progress.tasks


class Advances(Silent):
    """Records each task: its total, and how far it came."""

    def __init__(self) -> None:
        self.tasks: list[tuple[int, int]] = []

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        done: list[int] = []
        yield SimpleNamespace(advance=done.append)
        self.tasks.append((total, sum(done)))


@pytest.fixture(scope="module")
def damaged_bundle(
    small_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle whose GGUF has lost its end: `verify_bundle` refuses it with exit code 3."""
    folder = tmp_path_factory.mktemp("damaged") / "m-gguf"
    built = gguf(request_for(small_model("llama"), ["q8_0"], "m", folder))
    os.truncate(built.bundle.path(built.bundle.ggufs[0]), 1000)
    return folder
