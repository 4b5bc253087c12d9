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
        names: every name that answers, the first one first.
        check: what was read back of the first one, and its short answer.
        comparisons: each quant's prompts compared with the training prompts; empty if the daemon
            is too old to say what it renders.
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

    It keeps one of each; while it creates a model, it holds that GGUF `CREATE_COPIES` times.

    Raises:
        DiskSpaceError: if the file system of its models has less free.
    """
    folder = daemon.models_folder()
    if folder is not None:
        needed_bytes = sum(sizes_bytes) + (CREATE_COPIES - 1) * max(sizes_bytes, default=0)
        require_disk(folder, needed_bytes, "Ollama's copy of the model")


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
    """Hand a bundle's quants to a daemon, compare what it renders, and let it answer.

    Each model is created under a name of its own (`unproved_name`). It gets the requested name when
    the daemon has what was sent and renders the training prompts. Several quants become tags of one
    name; `latest` is the first.

    Args:
        bundle: what to register: its `ggufs`.
        daemon: where to.
        name: the model's name.
        progress: told what was done.
        conversations: those whose prompts are compared.
        force: give the name even if a prompt differs from the training prompt.

    Raises:
        DaemonError: if the daemon cannot be reached, or stops midway.
        RegistrationError: if what it has is not what was sent.
        PromptDifferenceError: if a prompt differs; the model stays under its `unproved_name`.
    """
    progress = progress or Silent()
    version = daemon.version()
    progress.note(f"Ollama {version} at {daemon.host}")
    _require_renderer(bundle, version, daemon.host)
    names = model_names(name, [file.quant for file in bundle.ggufs])
    beside = _upload_projector(bundle, daemon, progress)
    checks, comparisons = [], []
    for model, file in zip(names, bundle.ggufs, strict=True):
        unproved = unproved_name(model)
        digest = daemon.upload(bundle.path(file), progress, sha256=file.sha256)
        daemon.create(unproved, {file.name: digest, **beside}, _settings(bundle))
        comparison = _compare(bundle, unproved, daemon, conversations, progress)
        if comparison is not None:
            comparisons.append(comparison)
            report_comparison(comparison, progress)
            try:
                require_equal(
                    comparison,
                    f"{unproved} is registered, but not as {model}",
                    f"See `ftpack prompt {unproved} --against {daemon.host}`; with --force it "
                    f"becomes {model} all the same.",
                )
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
        and not OllamaVersion.parse(version).can_be_native
    ):
        raise RegistrationError(
            f"Ollama {version} at {host} does not render with a GGUF's own chat template, which "
            "this bundle needs.",
            next_step=f"Package the model with --ollama-version {version}, or update Ollama.",
        )


def _upload_projector(bundle: Bundle, daemon: Daemon, progress: Progress) -> dict[str, str]:
    """The `mmproj`, if there is one, and the digest under which the daemon has it."""
    projector = bundle.manifest.projector
    if projector is None:
        return {}
    digest = daemon.upload(bundle.path(projector), progress, sha256=projector.sha256)
    progress.note("The server inserts images and sounds into prompts itself; only text is compared")
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
    """Compare what the daemon renders; None if it is too old to say."""
    prompt = bundle.manifest.prompt
    chat_template = recorded_template(prompt.trained, prompt.template_origin or "")
    try:
        return compare_on_daemon(
            chat_template, daemon, name, conversations, prompt.system,
            is_by_template=prompt.ollama_template is not None,
        )  # fmt: skip
    except UnsupportedError as error:
        progress.warn(f"{error.message} The prompt is compared offline only")
        return None


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
