"""Files: written completely or not at all, read with errors that say what to do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packager.allocator import without_garbage_collection
from packager.errors import RESTORE_FILE, CorruptFileError, DiskSpaceError

PARTIAL_SUFFIX = ".partial"
_READ_BYTES = 1 << 20
_AHEAD_BYTES = 16 << 20
# transformers writes "no limit" as 10^30.
_MAX_DIGITS = 300
# JSON can escape half of a character, which no file and no server accepts.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class JsonContent:
    """A JSON file, read once.

    Attributes:
        content: the file's bytes.
        value: the JSON object in them.
    """

    content: bytes
    value: dict[str, object]


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; the file gets its name, synced, only if the block succeeds.

    Until then the bytes are in `PATH.partial`. An error removes that file; after a crash the next
    run overwrites it.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    publish(path)


def partial_path(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def publish(path: Path) -> None:
    """Give a finished and synced partial file its final name, and sync the folder."""
    os.replace(partial_path(path), path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure, where the system can sync a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for one run; the end of the block removes it with its contents."""
    with tempfile.TemporaryDirectory(prefix="ftpack-") as folder:
        yield Path(folder)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; an error removes those of them that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text without newline translation, completely or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with a final newline, completely or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, next_step: str) -> str:
    """Read UTF-8 text.

    Raises:
        CorruptFileError: with `next_step`, if the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            f"{path} cannot be read as text: {error}", next_step=next_step
        ) from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        CorruptFileError: if the file cannot be read, is not JSON, or does not hold an object.
    """
    return parse_json(path).value


def parse_json(path: Path) -> JsonContent:
    """Read a JSON object together with the file's bytes, so that no caller reads them again.

    Raises:
        CorruptFileError: if the file cannot be read, is not JSON, or does not hold an object.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
        with without_garbage_collection():
            value = json.loads(text, parse_int=_parse_int)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    # ValueError: not UTF-8, not JSON, a number that is too large, or half of a character.
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{path} cannot be read as JSON: {error}",
            next_step=RESTORE_FILE,
        ) from error
    if not isinstance(value, dict):
        raise CorruptFileError(
            f"{path} holds a JSON {type(value).__name__}, not an object.",
            next_step=RESTORE_FILE,
        )
    return JsonContent(content, value)


def _parse_int(digits: str) -> int:
    """An integer that fits into a float: `math.isfinite` raises on larger ones."""
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def require_inside(path: Path, folder: Path) -> Path:
    """`path`, if it resolves to a place in `folder`, or in the Hub cache's repository around it.

    Otherwise a link in a downloaded folder could copy any file of this machine into a model.

    Raises:
        CorruptFileError: with the path and the place that it links to.
    """
    if not is_inside(path, folder):
        fix = "name that folder itself" if path.is_dir() else "replace the link by the file (cp -L)"
        raise CorruptFileError(
            f"{path} is a link to a place outside its folder, {path.resolve()}.",
            next_step=f"If you trust that link, {fix}; otherwise do not use the folder.",
        )
    return path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` resolves to a place in `folder`, or in its repository of the Hub cache."""
    # In the Hub's cache, `snapshots/COMMIT` links to `blobs` of the same repository.
    root, target = folder.resolve(), path.resolve()
    repositories = (place.parent for place in root.parents if place.name == "snapshots")
    allowed = (root, *(repository / "blobs" for repository in repositories))
    return any(target.is_relative_to(place) for place in allowed)


def existing_folder(text: str) -> Path | None:
    """The folder at this path, or None; never raises."""
    try:
        path = Path(text).expanduser()
        return path if path.is_dir() else None
    # Not a path: it has a NUL, a name that is too long, or an unknown user's home.
    except (OSError, ValueError, RuntimeError):
        return None


def sha256_file(path: Path, advance: Callable[[int], None] = lambda size_bytes: None) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Args:
        path: the file.
        advance: called with the number of bytes after each block.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def require_disk(path: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse to start if the file system of `path` has fewer than `needed_bytes` free.

    Raises:
        DiskSpaceError: with both sizes and the purpose.
    """
    free_bytes = shutil.disk_usage(existing_parent(path)).free
    if free_bytes < needed_bytes:
        raise DiskSpaceError(
            f"{purpose} needs {format_bytes(needed_bytes)} in {path}, "
            f"but only {format_bytes(free_bytes)} are free there.",
            next_step="Free some space, choose another folder, or choose fewer or smaller quants.",
        )


def format_bytes(size_bytes: float) -> str:
    """A size for people: `512 B`, `12.3 MiB`, `4.56 GiB`."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    for unit, digits in (("KiB", 1), ("MiB", 1), ("GiB", 2)):
        size_bytes /= 1024
        if size_bytes < 1024 or unit == "GiB":
            return f"{size_bytes:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def read_ahead(paths: Iterable[Path], limit_bytes: int) -> None:
    """Ask the system to load the files' first `limit_bytes` into memory; returns at once.

    The disk then works while the program is still importing its libraries. It is only a hint, and
    has no effect on a system without `posix_fadvise`.
    """
    if not hasattr(os, "posix_fadvise"):
        return

    def hint() -> None:
        left = limit_bytes
        for path in paths:
            with contextlib.suppress(OSError), path.open("rb") as file:
                size = min(left, path.stat().st_size)
                for start in range(0, size, _AHEAD_BYTES):
                    length = min(_AHEAD_BYTES, size - start)
                    os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
                left -= size

    # The call waits for the disk's queue, so that it needs a thread of its own.
    threading.Thread(target=hint, name="read-ahead", daemon=True).start()


def cache_folder() -> Path:
    """The folder of ftpack in the user's cache (`FTPACK_CACHE` overrides it)."""
    if override := os.environ.get("FTPACK_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftpack"
