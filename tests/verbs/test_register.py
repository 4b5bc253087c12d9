"""`ftpack register` when the daemon's disk is full, or the daemon is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from packager.errors import DiskSpaceError
from packager.runtime.daemon import Daemon
from packager.verbs.register import require_store_space
from tests.command import ftpack
from tests.daemon import OllamaDaemon, running_daemon

pytestmark = pytest.mark.slow


def test_a_daemon_that_is_killed_during_the_upload_gives_exit_code_4(
    adapter: Callable[..., Path], ollama_binary: Path, tmp_path: Path
) -> None:
    built = ftpack(
        "gguf", adapter("llama"), "--quant", "f32", "--name", "x",
        host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    with running_daemon(ollama_binary, tmp_path / "daemon") as daemon:
        process = subprocess.Popen(
            [sys.executable, "-m", "packager", "register", "x-gguf", "--name", "x"],
            cwd=tmp_path,
            env=os.environ | {"OLLAMA_HOST": daemon.host},
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not any((daemon.models / "blobs").glob("*")):
            pass
        os.killpg(daemon.process.pid, signal.SIGKILL)
        _, errors = process.communicate()

    assert process.returncode == 4, errors
    assert "Next: " in errors


def test_a_daemon_without_room_for_its_copies_is_refused_before_the_work(
    ollama_daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two files are kept, and three copies of the larger one exist while create rewrites it.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=39 << 20))
    with pytest.raises(DiskSpaceError, match=r"Ollama.* 44\.0 MiB"):
        require_store_space(Daemon(ollama_daemon.host), [8 << 20, 8 << 20 | 4 << 20])
    require_store_space(Daemon(ollama_daemon.host), [5 << 20, 10 << 20])
