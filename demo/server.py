"""An Ollama server for the demo: the one that is running, or a temporary one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packager.runtime.daemon import Daemon

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 30


@contextmanager
def ollama_server(workplace: Path) -> Iterator[str | None]:
    """Yields the address of a server, or None if there is no Ollama.

    A temporary server keeps its models and keys in `workplace`, listens on loopback only, and
    stops at the end.
    """
    running = Daemon()
    if running.is_reachable():
        yield running.host
        return
    binary = _installed_ollama()
    if binary is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    workplace.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "HOME": str(workplace),
        "OLLAMA_HOST": host,
        "OLLAMA_MODELS": str(workplace / "models"),
        "OLLAMA_NO_CLOUD": "1",
    }
    with (workplace / "server.log").open("wb") as log:
        process = subprocess.Popen([binary, "serve"], env=environment, stdout=log, stderr=log)
    try:
        _wait_for(host, process, workplace / "server.log")
        yield host
    finally:
        process.terminate()
        process.wait(timeout=START_LIMIT_S)


def _installed_ollama() -> str | None:
    command = [ROOT / "scripts" / "install-ollama", "--if-cached"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode or not process.stdout.strip():
        return None
    return process.stdout.split()[-1]


def _wait_for(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    daemon = Daemon(host)
    deadline = time.monotonic() + START_LIMIT_S
    while not daemon.is_reachable():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"demo: Ollama did not start; see its log, {log}")
        time.sleep(0.2)
