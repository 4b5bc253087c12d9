"""The bundle: the folder that is handed over, with its manifest, its Modelfile and its checksums.

The bytes of these files depend only on what was packaged: they hold no time and no path of this
machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packager.bundle.manifest import MANIFEST, RESTORE, GgufFile, Manifest, require_plain_name
from packager.errors import CorruptFileError, NotAModelError, SourceNotFoundError
from packager.files import read_json, read_text, sha256_file, write_text
from packager.progress import Progress

MODELFILE = "Modelfile"
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A finished bundle, or some of its quants.

    Attributes:
        folder: where it is.
        manifest: what the folder holds, quants of earlier runs included.
        ggufs: the quants that are meant, in order; the `mmproj` belongs to each of them.
    """

    folder: Path
    manifest: Manifest
    ggufs: tuple[GgufFile, ...]

    @property
    def files(self) -> tuple[GgufFile, ...]:
        """The quants that are meant, and the `mmproj` if there is one."""
        projector = self.manifest.projector
        return (*self.ggufs, projector) if projector else self.ggufs

    def path(self, file: GgufFile) -> Path:
        """Where a file of the bundle is."""
        return self.folder / file.name

    def select(self, quants: Sequence[str]) -> Bundle:
        """The same bundle with only these quants, in the order of the manifest; all if empty.

        Raises:
            SourceNotFoundError: if the bundle lacks one of them.
        """
        ggufs = tuple(file for file in self.manifest.ggufs if not quants or file.quant in quants)
        if missing := set(quants) - {file.quant for file in ggufs}:
            available = ", ".join(file.quant for file in self.manifest.ggufs)
            raise SourceNotFoundError(
                f"{self.folder} does not contain {', '.join(sorted(missing))}; it contains "
                f"{available}.",
                next_step="Choose one of these with --quant, or build the others with "
                "`ftpack gguf`.",
            )
        return replace(self, ggufs=ggufs)


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a finished bundle."""
    return (folder / MANIFEST).is_file()


def write_bundle(folder: Path, manifest: Manifest, modelfile_text: str) -> None:
    """Write a bundle's Modelfile, manifest and checksums beside its GGUFs.

    The manifest is written last: a folder that has one is a finished bundle.
    """
    manifest_text = manifest.to_json()
    digests = {gguf.name: gguf.sha256 for gguf in manifest.files}
    digests[MODELFILE] = _sha256_text(modelfile_text)
    digests[MANIFEST] = _sha256_text(manifest_text)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    write_text(folder / MODELFILE, modelfile_text)
    write_text(folder / CHECKSUMS, "".join(lines))
    write_text(folder / MANIFEST, manifest_text)


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, with all of its quants; only its manifest is read.

    Raises:
        NotAModelError: if the folder is not a bundle.
        CorruptFileError: if its manifest cannot be read.
    """
    path = folder / MANIFEST
    if not is_bundle(folder):
        raise NotAModelError(
            f"{folder} is not a bundle: it has no {MANIFEST}.",
            next_step="Make one with `ftpack gguf SOURCE --out FOLDER`.",
        )
    manifest = Manifest.from_json(read_json(path), str(path))
    return Bundle(folder, manifest, manifest.ggufs)


def verify_bundle(bundle: Bundle, progress: Progress) -> None:
    """Check that every file of a bundle has the digest that it was written with.

    Raises:
        CorruptFileError: naming the first file that is missing or differs.
    """
    folder, manifest = bundle.folder, bundle.manifest
    digests = _read_checksums(folder / CHECKSUMS)
    for gguf in manifest.files:
        if digests.setdefault(gguf.name, gguf.sha256) != gguf.sha256:
            raise CorruptFileError(
                f"{folder}: {MANIFEST} and {CHECKSUMS} have different digests for {gguf.name}.",
                next_step=RESTORE,
            )
    missing = [name for name in digests if not (folder / name).is_file()]
    if missing:
        raise CorruptFileError(
            f"{folder} lacks {', '.join(missing)} of the bundle.", next_step=RESTORE
        )
    sizes = {name: (folder / name).stat().st_size for name in digests}
    with progress.task("Checking the bundle", sum(sizes.values())) as task:
        for name, expected in digests.items():
            digest = sha256_file(folder / name, task.advance)
            if digest != expected:
                raise CorruptFileError(
                    f"{folder / name} has the SHA-256 {digest}, not {expected}.",
                    next_step=RESTORE,
                )


def _read_checksums(path: Path) -> dict[str, str]:
    if path.exists() and not path.is_file():
        raise CorruptFileError(f"{path} is not a plain file.", next_step=RESTORE)
    lines = read_text(path, RESTORE).splitlines()
    digests = {}
    for number, line in enumerate(lines, start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise CorruptFileError(
                f"{path}, line {number}: {line!r} is not of the form `DIGEST  NAME`.",
                next_step=RESTORE,
            )
        require_plain_name(name, str(path))
        digests[name] = digest
    return digests


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
