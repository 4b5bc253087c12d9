"""`ftpack doctor`: what is installed, found and reachable on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packager.errors import FtpackError
from packager.files import cache_folder, existing_parent, format_bytes
from packager.gguf.toolchain import find_toolchain
from packager.runtime.daemon import Daemon

_NEEDED = ("llama-cpp-python", "torch", "transformers", "peft", "safetensors", "ollama")


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: the thing.
        state: what was found.
        is_ok: whether that is good enough.
        is_needed: whether packaging is impossible without it.
        fix: what to do if it is not good enough.
    """

    what: str
    state: str
    is_ok: bool
    is_needed: bool
    fix: str = ""


def doctor(host: str | None = None) -> list[Finding]:
    """The state of Python, the libraries, the toolchain, the GPU, the daemon and the disk.

    Args:
        host: the Ollama server; None for OLLAMA_HOST, else this machine's.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info < (3, 14)
    return [
        Finding("Python", version, fits, True, "" if fits else "Use Python 3.11 to 3.13."),
        *(_library(name) for name in _NEEDED),
        _try("llama.cpp's converter", True, lambda: str(find_toolchain().folder)),
        _gpu(),
        _try("Ollama", False, lambda: _daemon(host)),
        Finding("Cores", str(os.cpu_count()), True, False),
        _disk("Disk here", Path.cwd()),
        _disk("Disk of the cache", cache_folder()),
    ]


def _library(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True, True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", False, True, f"pip install {name}")


def _try(what: str, is_needed: bool, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, look(), True, is_needed)
    except FtpackError as error:
        return Finding(what, error.message, False, is_needed, error.next_step)


def _daemon(host: str | None) -> str:
    daemon = Daemon(host)
    return f"{daemon.version()} at {daemon.host}"


def _gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", "torch is not installed", False, False)
    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use; merging runs on the CPU", True, False)
    free_bytes, _ = torch.cuda.mem_get_info()
    return Finding(
        "GPU", f"{torch.cuda.get_device_name()}, {format_bytes(free_bytes)} free", True, False
    )


def _disk(what: str, folder: Path) -> Finding:
    free = shutil.disk_usage(existing_parent(folder)).free
    return Finding(what, f"{format_bytes(free)} free at {folder}", True, False)
