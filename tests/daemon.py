"""A real Ollama daemon for tests, on loopback, with folders of its own; its block ends it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_LISTENING = re.compile(r"Listening on (127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class OllamaDaemon:
    """A running daemon.

    Attributes:
        host: its address, in the form of OLLAMA_HOST.
        process: the daemon; its model runners are in the same process group.
        models: the folder of its models.
        log: the file with its output.
    """

    host: str
    process: subprocess.Popen[bytes]
    models: Path
    log: Path


def find_ollama() -> Path | None:
    """The installed Ollama, or else the one that scripts/install-ollama built."""
    if installed := shutil.which("ollama"):
        return Path(installed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = sorted((cache / "ftpack").glob("ollama-*/bin/ollama"))
    return built[-1] if built else None


@contextmanager
def running_daemon(
    binary: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[OllamaDaemon]:
    """Start a daemon that keeps all its files in `folder`; the end of the block stops it."""
    home, models, log = folder / "home", folder / "models", folder / "daemon.log"
    for path in (home, models):
        path.mkdir(parents=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
    own = {
        "HOME": str(home),
        # Port 0: the system chooses a free port, which the log names.
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_MODELS": str(models),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_CONTEXT_LENGTH": "2048",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(binary), "serve"],
            env={**inherited, **own, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield OllamaDaemon(_address(process, log), process, models, log)
    finally:
        stop_daemon(process)


def stop_daemon(process: subprocess.Popen[bytes]) -> None:
    """Stop a daemon and the rest of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if match := _LISTENING.search(log.read_text(errors="replace")):
            return match[1]
        time.sleep(0.05)
    raise RuntimeError(f"the Ollama daemon did not start:\n{log.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def ollama_binary() -> Path:
    """The path of `ollama`; without it a test is skipped, or fails if Ollama is required."""
    binary = find_ollama()
    if binary is None:
        missing = "Ollama is not installed; scripts/install-ollama builds it"
        if os.environ.get("FTPACK_REQUIRE_OLLAMA") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return binary


@pytest.fixture(scope="session")
def ollama_daemon(
    ollama_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OllamaDaemon]:
    """One daemon for the whole run; each test uses model names of its own."""
    with running_daemon(ollama_binary, tmp_path_factory.mktemp("ollama")) as daemon:
        yield daemon
