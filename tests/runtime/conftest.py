"""A real daemon, and a small GGUF whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.runtime.daemon import Daemon
from tests.daemon import OllamaDaemon
from tests.runtime.chain_gguf import write_chain_gguf


@pytest.fixture(scope="session")
def chain_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chain_gguf(tmp_path_factory.mktemp("chain") / "chain.gguf")


@pytest.fixture
def daemon(ollama_daemon: OllamaDaemon) -> Daemon:
    return Daemon(ollama_daemon.host)
