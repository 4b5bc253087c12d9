"""`ftpack ollama`: build the bundle, register it with a daemon, and verify what runs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packager.errors import DaemonError, PromptDifferenceError
from packager.files import scratch_folder
from packager.override import refuse_unless
from packager.package.package import Package
from packager.package.plan import Plan
from packager.package.prepare import prepare
from packager.package.request import Request
from packager.progress import Progress, Silent
from packager.prompt.conversation import BATTERY, Conversation
from packager.prompt.ollama_version import OllamaVersion
from packager.runtime.daemon import Daemon
from packager.verbs.build import Built, build
from packager.verbs.gguf import plan as plan_gguf
from packager.verbs.register import Registered, model_names, register, require_store_space
from packager.verify.comparison_report import report_comparison
from packager.verify.renderers import compare_gguf, require_equal


@dataclass(frozen=True)
class Packaged:
    """A model that was built and registered.

    Attributes:
        built: the bundle.
        registered: what the daemon has now.
    """

    built: Built
    registered: Registered


def ollama(
    request: Request,
    daemon: Daemon,
    progress: Progress | None = None,
    *,
    conversations: Sequence[Conversation] = BATTERY,
    on_built: Callable[[Built], None] = lambda built: None,
) -> Packaged:
    """Make a source a model that answers in Ollama.

    Without a daemon the bundle is made and kept all the same.

    Args:
        request: what to make.
        daemon: where to register it.
        progress: told every decision, and how far the work is.
        conversations: those whose prompts are compared.
        on_built: called with the bundle before it is registered, which can fail.

    Raises:
        FtpackError: whatever is wrong with the input, before any long work.
        PromptDifferenceError: if a prompt differs from the training prompt.
        DaemonError: if the daemon cannot be reached, with the command that registers the bundle.
    """
    progress = progress or Silent()
    _require_names(request, request.name)
    request = _for_server(request, daemon)
    with scratch_folder() as scratch:
        package = prepare(request, scratch, progress)
        _require_names(request, package.name)
        if daemon.is_reachable():
            require_store_space(daemon, [file.typed.size_bytes for file in package.files])
        else:
            progress.warn(f"No Ollama answers at {daemon.host}; the bundle is built and kept")
        built = build(package, progress)
        on_built(built)
        _compare_built(package, built, conversations, scratch, progress)
    try:
        registered = register(
            built.bundle, daemon, package.name, progress,
            conversations=conversations, force=request.force,
        )  # fmt: skip
    except DaemonError as error:
        then = f"Then: ftpack register {built.bundle.folder} --name {package.name}"
        error.next_step = f"{error.next_step} {then}".strip()
        raise
    return Packaged(built, registered)


def plan_ollama(request: Request, daemon: Daemon, progress: Progress | None = None) -> Plan:
    """What `ollama` would make and what it would cost, for every quant of llama.cpp.

    Raises:
        FtpackError: whatever is wrong with the input.
    """
    _require_names(request, request.name)
    plan = plan_gguf(_for_server(request, daemon), progress)
    _require_names(request, plan.name)
    return plan


def _require_names(request: Request, name: str | None) -> None:
    if name:
        model_names(name, [quant.name for quant in request.build.wanted])


def _for_server(request: Request, daemon: Daemon) -> Request:
    """The request with the server's own version, unless it names one or no server answers."""
    if request.prompt.ollama_version is not None or not daemon.is_reachable():
        return request
    version = OllamaVersion.parse(daemon.version())
    return replace(request, prompt=replace(request.prompt, ollama_version=version))


def _compare_built(
    package: Package,
    built: Built,
    conversations: Sequence[Conversation],
    scratch: Path,
    progress: Progress,
) -> None:
    """Compare what the embedded runtime makes of the GGUF with training."""
    folder = built.bundle.folder
    compared = compare_gguf(
        package.prompt.chat_template,
        package.inputs.files,
        built.bundle.path(built.bundle.ggufs[0]),
        conversations,
        scratch,
    )
    for comparison in (compared.prompts, compared.vocabulary):
        report_comparison(comparison, progress)
        try:
            require_equal(
                comparison,
                f"{folder} is built, but not registered",
                f"See `ftpack prompt {folder}`; --force registers it all the same.",
            )
        except PromptDifferenceError as error:
            refuse_unless(package.force, error, progress)
