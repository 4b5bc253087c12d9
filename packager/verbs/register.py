"""A bundle becomes a model, or one model with several tags, in an Ollama daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packager.bundle.manifest import GgufFile, Manifest
from packager.errors import (
    PromptDifferenceError,
    RegistrationError,
    UnsupportedError,
    UsageError,
)
from packager.files import require_disk
from packager.package.prompt_choice import recorded_template
from packager.progress import Progress
from packager.prompt.comparison import Proof
from packager.prompt.conversation import BATTERY, Conversation
from packager.prompt.server import is_native_capable
from packager.runtime.daemon import CREATE_COPIES, Daemon, Registration, validate_name, with_suffix
from packager.verify.renderers import prove_on_daemon, require_proved


@dataclass(frozen=True)
class Registered:
    """What a daemon has now.

    Attributes:
        host: the daemon that was reached.
        version: its version.
        names: every name that answers, the first one first.
        check: what was read back of the first one, and its short answer.
        proofs: each quant's prompts held against those of training; none where the daemon is too
            old to tell what it renders.
    """

    host: str
    version: str
    names: tuple[str, ...]
    check: Registration
    proofs: tuple[Proof, ...]


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


def unproved_name(name: str) -> str:
    """The name of a model while its prompt is not proved: `NAME-unproved`, with the same tag."""
    return with_suffix(name, "-unproved")


def register(
    folder: Path,
    manifest: Manifest,
    files: Sequence[GgufFile],
    name: str,
    daemon: Daemon,
    progress: Progress,
    *,
    conversations: Sequence[Conversation] = BATTERY,
    force: bool = False,
) -> Registered:
    """Hand a bundle's GGUFs to the daemon, prove what it made of them, and let it answer.

    A model is made under a name of its own, and takes the name asked for when what is in force is
    what was sent and its prompts are those of training. Several files become tags of one name;
    `latest` is the first.

    Args:
        folder: the bundle's.
        manifest: the bundle's.
        files: the GGUFs to register.
        name: the model's name.
        daemon: where to.
        progress: told what was done.
        conversations: those whose prompts are compared.
        force: give the name even where a prompt is not the one of training.

    Raises:
        DaemonError: if the daemon is not there, or goes away midway.
        RegistrationError: if what is in force there is not what was sent.
        PromptDifferenceError: if a prompt is not the one of training; the model is left under its
            `unproved_name`.
    """
    version = daemon.version()
    progress.note(f"Ollama {version} at {daemon.host}")
    _require_renderer(manifest, version, daemon.host)
    names = model_names(name, [file.quant for file in files])
    checks, proofs = [], []
    beside = {}
    if projector := manifest.projector:
        path = folder / projector.name
        beside[projector.name] = daemon.upload(path, progress, sha256=projector.sha256)
        progress.note("Images and sounds: the server puts them into the prompt by itself; compared "
                      "is text")  # fmt: skip
    for model, file in zip(names, files, strict=True):
        unproved = unproved_name(model)
        digest = daemon.upload(folder / file.name, progress, sha256=file.sha256)
        _create(unproved, {file.name: digest, **beside}, manifest, daemon)
        proof = _prove(manifest, unproved, daemon, conversations, progress)
        if proof is not None:
            proofs.append(proof)
            _require_proved(proof, unproved, model, progress, force=force)
        prompt = manifest.prompt
        check = daemon.verify(
            unproved, prompt.template, prompt.stops,
            parameters=prompt.parameters, has_projector=projector is not None,
        )  # fmt: skip
        daemon.rename(unproved, model)
        checks.append(replace(check, name=model))
        progress.note(f"Registered {model}")
    for check in checks:
        shown = [stop for stop in manifest.prompt.stops if stop in check.answer]
        if shown:
            progress.warn(
                f"{check.name} wrote {shown[0]!r} as text, where a turn should have ended"
            )
    if len(names) > 1:
        daemon.copy(names[0], name)
        names = (*names, f"{name}:latest")
    return Registered(daemon.host, version, names, checks[0], tuple(proofs))


def _require_renderer(manifest: Manifest, version: str, host: str) -> None:
    if manifest.prompt.renderer == "native" and not is_native_capable(version):
        raise RegistrationError(
            f"Ollama {version} at {host} does not render with a GGUF's own chat template, as this "
            "bundle asks for.",
            next_step=f"Package the model with --ollama-version {version}, or update Ollama.",
        )


def _create(name: str, files: Mapping[str, str], manifest: Manifest, daemon: Daemon) -> None:
    prompt = manifest.prompt
    daemon.create(
        name,
        files,
        template=prompt.template,
        system=prompt.system,
        stops=prompt.stops,
        parameters=prompt.parameters,
    )


def _prove(
    manifest: Manifest,
    name: str,
    daemon: Daemon,
    conversations: Sequence[Conversation],
    progress: Progress,
) -> Proof | None:
    chat_template = recorded_template(
        manifest.prompt.trained, manifest.prompt.template_origin or ""
    )
    try:
        return prove_on_daemon(
            chat_template, daemon, name, conversations, manifest.prompt.system,
            is_by_template=manifest.prompt.template is not None,
        )  # fmt: skip
    except UnsupportedError as error:
        progress.warn(f"{error.message} The prompt is proved offline only")
        return None


def _require_proved(
    proof: Proof, unproved: str, model: str, progress: Progress, *, force: bool
) -> None:
    try:
        require_proved(
            proof,
            f"{unproved} is registered, but not as {model}",
            next_step=f"See `ftpack prompt {unproved} --against {proof.level}`; with --force it "
            f"becomes {model} all the same.",
        )
    except PromptDifferenceError as error:
        if not force:
            raise
        progress.warn(error.message)
