"""`ftpack register`: a bundle becomes a model, or a model with several tags, in Ollama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from packager.bundle.bundle import Bundle
from packager.errors import PromptDifferenceError, RegistrationError, UnsupportedError, UsageError
from packager.files import require_disk
from packager.override import refuse_unless
from packager.progress import Progress, Silent
from packager.prompt.comparison import Comparison
from packager.prompt.conversation import BATTERY, Conversation
from packager.prompt.ollama_version import OllamaVersion
from packager.prompt.template_record import recorded_template
from packager.runtime.daemon import CREATE_COPIES, Daemon, Registration
from packager.runtime.model_name import validate_name, with_suffix
from packager.runtime.model_settings import ModelSettings
from packager.verify.comparison_report import report_comparison
from packager.verify.renderers import compare_on_daemon, require_equal


@dataclass(frozen=True)
class Registered:
    """What a daemon has now.

    Attributes:
        host: the daemon's address.
        version: its version.
        names: every name that answers; the main one comes first.
        check: what the daemon says about the main one, and its short answer.
        comparisons: each quant's prompts compared with the training prompts; empty if the daemon
            is too old to show what it renders.
    """

    host: str
    version: str
    names: tuple[str, ...]
    check: Registration
    comparisons: tuple[Comparison, ...]


def model_names(name: str, quants: Sequence[str]) -> tuple[str, ...]:
    """The names that quants get: `NAME` for one, `NAME:q4_k_m`, ... for several.

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
    """Check that a daemon on this machine has room for its own copies of the GGUFs.

    It keeps one copy of each; while it creates a model, it has `CREATE_COPIES` copies of that GGUF.

    Raises:
        DiskSpaceError: if the file system of its models has less free.
    """
    folder = daemon.models_folder()
    if folder is not None:
        needed_bytes = sum(sizes_bytes) + (CREATE_COPIES - 1) * max(sizes_bytes, default=0)
        require_disk(folder, needed_bytes, "Ollama's copy of the model")


def require_registrable(bundle: Bundle, daemon: Daemon, name: str) -> None:
    """Check everything that can prevent `register`, before a byte of a GGUF is read.

    Raises:
        InvalidNameError: if Ollama would refuse the name.
        UsageError: if there are several quants and the name has a tag already.
        DaemonError: if the daemon cannot be reached.
        RegistrationError: if it is too old to render with the bundle's chat template.
        DiskSpaceError: if there is no room for its copies of the GGUFs.
    """
    model_names(name, [file.quant for file in bundle.ggufs])
    _require_renderer(bundle, daemon.version(), daemon.host)
    require_store_space(daemon, [file.size_bytes for file in bundle.files])


def unproved_name(name: str) -> str:
    """The name of a model until its prompts are compared: `NAME-unproved`, with the same tag."""
    return with_suffix(name, "-unproved")


def register(
    bundle: Bundle,
    daemon: Daemon,
    name: str,
    progress: Progress | None = None,
    *,
    conversations: Sequence[Conversation] = BATTERY,
    force: bool = False,
) -> Registered:
    """Register a bundle's quants with a daemon; gives what it has then, and a short answer.

    Each model is created under a temporary name (`unproved_name`). It gets the requested name once
    the daemon has what was sent, renders the training prompts, and answers. Several quants become
    tags of one name; `latest` is the first. The files are not hashed: `verify_bundle` does that.

    Args:
        bundle: what to register: its `ggufs`.
        daemon: where to.
        name: the model's name.
        progress: receives each step, and the bytes of the upload.
        conversations: the conversations whose prompts are compared.
        force: give the name even if a prompt differs from the training prompt.

    Raises:
        InvalidNameError: if Ollama would refuse the name.
        UsageError: if there are several quants and the name has a tag already.
        DaemonError: if the daemon cannot be reached, or stops midway.
        RegistrationError: if what it has is not what was sent.
        PromptDifferenceError: if a prompt differs; the model stays under its `unproved_name`.
    """
    progress = progress or Silent()
    names = model_names(name, [file.quant for file in bundle.ggufs])
    version = daemon.version()
    progress.note(f"Ollama {version} at {daemon.host}")
    _require_renderer(bundle, version, daemon.host)
    beside = _upload_projector(bundle, daemon, progress)
    checks, comparisons = [], []
    for model, file in zip(names, bundle.ggufs, strict=True):
        unproved = unproved_name(model)
        digest = daemon.upload(bundle.path(file), progress, sha256=file.sha256)
        daemon.create(unproved, {file.name: digest, **beside}, _settings(bundle))
        comparison = _compare(bundle, unproved, daemon, conversations, progress)
        if comparison is not None:
            comparisons.append(comparison)
            try:
                _require_same_prompts(comparison, unproved, model)
            except PromptDifferenceError as error:
                refuse_unless(force, error, progress)
        checks.append(_verify(bundle, unproved, model, daemon))
        progress.note(f"Registered {model}")
    _warn_of_stops_in_answers(bundle, checks, progress)
    if len(names) > 1:
        daemon.copy(names[0], name)
        names = (*names, f"{name}:latest")
    return Registered(daemon.host, version, names, checks[0], tuple(comparisons))


def _require_renderer(bundle: Bundle, version: str, host: str) -> None:
    if (
        bundle.manifest.prompt.renderer == "native"
        and not OllamaVersion.of_server(version).can_be_native
    ):
        raise RegistrationError(
            f"Ollama {version} at {host} does not render with a GGUF's own chat template, which "
            "this bundle needs.",
            next_step=f"Package the model with --ollama-version {version}, or update Ollama.",
        )


def _upload_projector(bundle: Bundle, daemon: Daemon, progress: Progress) -> dict[str, str]:
    """Upload the `mmproj` if there is one; gives its digest by its name."""
    projector = bundle.manifest.projector
    if projector is None:
        return {}
    digest = daemon.upload(bundle.path(projector), progress, sha256=projector.sha256)
    progress.note(
        "The server inserts images and sounds itself; only the text of prompts is compared"
    )
    return {projector.name: digest}


def _settings(bundle: Bundle) -> ModelSettings:
    prompt = bundle.manifest.prompt
    return ModelSettings(prompt.ollama_template, prompt.system, prompt.stops, prompt.parameters)


def _compare(
    bundle: Bundle,
    name: str,
    daemon: Daemon,
    conversations: Sequence[Conversation],
    progress: Progress,
) -> Comparison | None:
    """The daemon's prompts compared with the training prompts; None if it cannot show them."""
    prompt = bundle.manifest.prompt
    chat_template = recorded_template(prompt.trained, prompt.template_origin or "")
    try:
        comparison = compare_on_daemon(
            chat_template, daemon, name, conversations, prompt.system,
            is_by_template=prompt.ollama_template is not None,
        )  # fmt: skip
    except UnsupportedError as error:
        progress.warn(f"{error.message} The prompt is not compared on this server")
        return None
    report_comparison(comparison, progress)
    return comparison


def _require_same_prompts(comparison: Comparison, unproved: str, model: str) -> None:
    require_equal(
        comparison,
        f"{unproved} is registered, but not as {model}",
        f"See `ftpack prompt {unproved} --against {comparison.level}`, or register it as {model} "
        "with --force.",
    )


def _verify(bundle: Bundle, unproved: str, model: str, daemon: Daemon) -> Registration:
    """Read a created model back, let it answer, and give it its name."""
    has_projector = bundle.manifest.projector is not None
    check = daemon.verify(unproved, _settings(bundle), has_projector=has_projector)
    daemon.rename(unproved, model)
    return replace(check, name=model)


def _warn_of_stops_in_answers(
    bundle: Bundle, checks: Sequence[Registration], progress: Progress
) -> None:
    for check in checks:
        stops = [stop for stop in bundle.manifest.prompt.stops if stop in check.answer]
        if stops:
            progress.warn(f"{check.name} wrote {stops[0]!r} as text instead of ending its turn")
