"""The bundle: the folder that is handed over, with its manifest, its Modelfile and its checksums.

The bytes of these files depend on what was packaged alone: no time, no path of this machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from packager.bundle.manifest import MANIFEST, RESTORE, Manifest, require_plain_name
from packager.errors import CorruptFileError, NotAModelError
from packager.files import read_json, read_text, sha256_file, write_text
from packager.progress import Progress, Silent

MODELFILE = "Modelfile"
CHECKSUMS = "SHA256SUMS"


def write_bundle(folder: Path, manifest: Manifest, modelfile_text: str) -> None:
    """Write a bundle's Modelfile, manifest and checksums beside its GGUFs.

    The manifest comes last: a folder that has one is a whole bundle.
    """
    manifest_text = manifest.to_json()
    digests = {gguf.name: gguf.sha256 for gguf in manifest.files}
    digests[MODELFILE] = _sha256_text(modelfile_text)
    digests[MANIFEST] = _sha256_text(manifest_text)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    write_text(folder / MODELFILE, modelfile_text)
    write_text(folder / CHECKSUMS, "".join(lines))
    write_text(folder / MANIFEST, manifest_text)


def read_bundle(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        NotAModelError: if the folder is no bundle.
        CorruptFileError: if its manifest cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise NotAModelError(
            f"{folder} is not a bundle: it has no {MANIFEST}.",
            next_step="Make one with `ftpack gguf SOURCE --out FOLDER`.",
        )
    return Manifest.from_json(read_json(path), str(path))


def verify_bundle(folder: Path, progress: Progress | None = None) -> Manifest:
    """The manifest of a bundle whose every file has the digest that it was written with.

    Raises:
        NotAModelError: if the folder is no bundle.
        CorruptFileError: naming the first file that is missing, or differs.
    """
    progress = progress or Silent()
    manifest = read_bundle(folder)
    digests = _read_checksums(folder / CHECKSUMS)
    for gguf in manifest.files:
        if digests.setdefault(gguf.name, gguf.sha256) != gguf.sha256:
            raise CorruptFileError(
                f"{folder}: {MANIFEST} and {CHECKSUMS} tell different digests of {gguf.name}.",
                next_step=RESTORE,
            )
    missing = [name for name in digests if not (folder / name).is_file()]
    if missing:
        raise CorruptFileError(
            f"{folder}: {', '.join(missing)} of the bundle is missing.", next_step=RESTORE
        )
    sizes = {name: (folder / name).stat().st_size for name in digests}
    with progress.task("Checking the bundle", sum(sizes.values())) as task:
        for name, expected in digests.items():
            found = sha256_file(folder / name)
            if found != expected:
                raise CorruptFileError(
                    f"{folder / name} has the SHA-256 {found}, not {expected}.",
                    next_step=RESTORE,
                )
            task.advance(sizes[name])
    return manifest


def _read_checksums(path: Path) -> dict[str, str]:
    if path.exists() and not path.is_file():
        raise CorruptFileError(f"{path} is no plain file.", next_step=RESTORE)
    lines = read_text(path, RESTORE).splitlines()
    digests = {}
    for number, line in enumerate(lines, start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise CorruptFileError(
                f"{path}, line {number}: {line!r} is not `DIGEST  NAME`.", next_step=RESTORE
            )
        require_plain_name(name, str(path))
        digests[name] = digest
    return digests


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
