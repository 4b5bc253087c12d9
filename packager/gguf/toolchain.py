"""llama.cpp's converter, staged from the sources of the installed llama-cpp-python."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import FtpackError, ToolchainError
from packager.files import cache_folder, read_json, sha256_file, write_json
from packager.progress import Progress

DISTRIBUTION = "llama-cpp-python"
ENVIRONMENT_VARIABLE = "FTPACK_LLAMA_CPP"
_MARKER = "toolchain.json"
_PARTS = ("conversion", "gguf-py", "models", "convert_hf_to_gguf.py", "LICENSE")
# The code that runs: ftpack notices if it changes.
_CODE = ("conversion", "gguf-py/gguf")
# Digests of source distributions that were reviewed and tested. For other versions, ftpack relies
# on pip's own check.
_KNOWN_SDISTS = {
    "0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
_INSTALL = "ftpack doctor --install-toolchain"


@dataclass(frozen=True)
class Toolchain:
    """A folder with llama.cpp's `conversion` and `gguf-py` packages, ready to be imported.

    Attributes:
        folder: a part of llama.cpp's sources.
        version: the llama-cpp-python that they belong to, or `checkout`.
    """

    folder: Path
    version: str

    def activate(self) -> None:
        """Make `conversion` and its own `gguf` importable, ahead of any other `gguf`."""
        paths = [str(self.folder / "gguf-py"), str(self.folder)]
        if sys.path[: len(paths)] != paths:
            sys.path[:0] = paths
        gguf: Any = importlib.import_module("gguf")
        if not Path(gguf.__file__).is_relative_to(self.folder):
            raise ToolchainError(
                f"Another `gguf` package is already imported, from {gguf.__file__}.",
                next_step="Use ftpack in a Python process that has not imported gguf.",
            )
        # They log each tensor; ftpack itself reports what matters.
        for name in ("hf-to-gguf", "gguf", "gguf.gguf_writer", "gguf.vocab", "gguf.metadata"):
            logging.getLogger(name).setLevel(logging.ERROR)


def installed_version() -> str:
    """The version of the installed llama-cpp-python.

    Raises:
        ToolchainError: if it is not installed.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise ToolchainError(
            f"{DISTRIBUTION} is not installed.",
            next_step=f"pip install {DISTRIBUTION} (it compiles for some minutes, once).",
        )
    return importlib.metadata.version(DISTRIBUTION)


def find_toolchain() -> Toolchain:
    """The checkout that `FTPACK_LLAMA_CPP` names, else the staged sources of the installed version.

    Raises:
        ToolchainError: if there are none, or their files were changed.
    """
    version = installed_version()
    if checkout := os.environ.get(ENVIRONMENT_VARIABLE):
        folder = Path(checkout)
        if not (folder / "conversion" / "base.py").is_file():
            raise ToolchainError(
                f"{ENVIRONMENT_VARIABLE}={checkout} is not a llama.cpp checkout with conversion/.",
                next_step=f"Name a recent checkout, or unset it and run `{_INSTALL}`.",
            )
        return Toolchain(folder, "checkout")
    folder = _staged_folder(version)
    marker = folder / _MARKER
    if not marker.is_file():
        raise ToolchainError(
            f"llama.cpp's converter for {DISTRIBUTION} {version} is not in {folder}.",
            next_step=f"Run `{_INSTALL}` once.",
        )
    if read_json(marker).get("code_sha256") != _code_digest(folder):
        raise ToolchainError(
            f"Files of llama.cpp's converter in {folder} were changed.",
            next_step=f"Run `{_INSTALL}` to stage it again.",
        )
    return Toolchain(folder, version)


def _staged_folder(version: str) -> Path:
    return cache_folder() / f"llama.cpp-{version}"


def _code_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in _CODE:
        for path in sorted((folder / part).rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def install_toolchain(progress: Progress, sdist: Path | None = None) -> Toolchain:
    """Stage the converter of the installed version from its source distribution.

    Args:
        progress: gets a note for each step.
        sdist: a source distribution on this machine; None to download it with pip.

    Raises:
        ToolchainError: if it cannot be downloaded, or has another digest than the reviewed one.
    """
    version = installed_version()
    target = _staged_folder(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="staging-") as scratch:
        archive = sdist or _download(version, Path(scratch), progress)
        digest = sha256_file(archive)
        if _KNOWN_SDISTS.get(version, digest) != digest:
            raise ToolchainError(
                f"{archive.name} has the digest {digest}, not {_KNOWN_SDISTS[version]}.",
                next_step="Clear pip's cache and try again; do not use this archive.",
            )
        progress.note(f"Unpacking {archive.name} into {target}")
        tree = Path(scratch) / "tree"
        _unpack(archive, tree)
        write_json(
            tree / _MARKER,
            {"version": version, "sdist_sha256": digest, "code_sha256": _code_digest(tree)},
        )
        if target.exists():
            shutil.rmtree(target)
        tree.replace(target)
    return find_toolchain()


def _download(version: str, folder: Path, progress: Progress) -> Path:
    progress.note(f"Downloading the sources of {DISTRIBUTION} {version} with pip")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
        f"--no-binary={DISTRIBUTION}", f"--dest={folder}", f"{DISTRIBUTION}=={version}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or not archives:
        raise ToolchainError(
            f"pip could not download {DISTRIBUTION} {version}: {result.stderr.strip()[-500:]}",
            next_step=f"Check the network; or set {ENVIRONMENT_VARIABLE} to a llama.cpp checkout.",
        )
    return archives[0]


def _unpack(archive: Path, target: Path) -> None:
    """Extract the necessary parts, and nothing else, of a source distribution."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, inner = member.name.partition("/vendor/llama.cpp/")
            if inner and any(inner == part or inner.startswith(f"{part}/") for part in _PARTS):
                member.name = inner
                tar.extract(member, target, filter="data")
    if not (target / "conversion" / "base.py").is_file():
        raise FtpackError(f"{archive} does not contain vendor/llama.cpp/conversion.")
