"""A bundle becomes a model, or one model with several tags, in an Ollama daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import GgufFile, Manifest
from packager.errors import UsageError
from packager.files import require_disk
from packager.progress import Progress
from packager.runtime.ollama import CREATE_COPIES, Daemon, Registration, validate_name


@dataclass(frozen=True)
class Registered:
    """What a daemon has now.

    Attributes:
        host: the daemon that was reached.
        version: its version.
        names: every name that answers, the first one first.
        check: what was read back of the first one, and its short answer.
    """

    host: str
    version: str
    names: tuple[str, ...]
    check: Registration


def model_names(name: str, quants: Sequence[str]) -> tuple[str, ...]:
    """The names that quants are registered under: `NAME` for one, `NAME:q4_k_m`, ... for several.

    Raises:
        InvalidNameError: if Ollama would refuse the name.
        UsageError: if there are several quants and the name has a tag already.
    """
    validate_name(name)
    if len(quants) == 1:
        return (name,)
    if ":" in name.rpartition("/")[2]:
        raise UsageError(
            f"The name {name!r} has a tag, but {len(quants)} quants need one each.",
            next_step=f"Use --name {name.rpartition(':')[0]}; the quants become its tags.",
        )
    return tuple(f"{name}:{quant.lower()}" for quant in quants)


def require_store_space(daemon: Daemon, sizes_bytes: Sequence[int]) -> None:
    """See that a daemon on this machine has room for its own copies of the GGUFs.

    It keeps one of each; while it makes a model of one, it holds that one `CREATE_COPIES` times.
    """
    folder = daemon.models_folder()
    if folder is not None:
        needed = sum(sizes_bytes) + (CREATE_COPIES - 1) * max(sizes_bytes, default=0)
        require_disk(folder, needed, "Ollama's copy of the model")


def register(
    folder: Path,
    manifest: Manifest,
    files: Sequence[GgufFile],
    name: str,
    daemon: Daemon,
    progress: Progress,
) -> Registered:
    """Hand a bundle's GGUFs to the daemon, read back what it made of them, and let it answer.

    Several files become tags of one name; `latest` is the first.

    Raises:
        DaemonError: if the daemon is not there, or goes away midway.
        RegistrationError: if what is in force there is not what was sent.
    """
    version = daemon.version()
    progress.note(f"Ollama {version} at {daemon.host}")
    prompt = manifest.prompt
    names = model_names(name, [file.quant for file in files])
    for model, file in zip(names, files, strict=True):
        digest = daemon.upload(folder / file.name, progress, sha256=file.sha256)
        daemon.create(
            model,
            digest=digest,
            file_name=file.name,
            template=prompt.template,
            system=prompt.system,
            stops=prompt.stops,
            parameters=prompt.parameters,
        )
        progress.note(f"Registered {model}")
    checks = [
        daemon.verify(model, prompt.template, prompt.stops, parameters=prompt.parameters)
        for model in names
    ]
    for check in checks:
        shown = [stop for stop in prompt.stops if stop in check.answer]
        if shown:
            progress.warn(
                f"{check.name} wrote {shown[0]!r} as text, where a turn should have ended"
            )
    if len(names) > 1:
        daemon.copy(names[0], name)
        names = (*names, f"{name}:latest")
    return Registered(daemon.host, version, names, checks[0])
