"""`ftpack ollama`: build the bundle, register it with a daemon, and verify what runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """Turn a source into a model that answers in Ollama; gives the bundle and what Ollama has.

    The bundle is built and kept even if the daemon cannot be reached.

    Args:
        request: what to make.
        daemon: where to register it.
        progress: receives every decision, and the state of the work.
        conversations: the conversations whose prompts are compared.
        on_built: called with the bundle before it is compared and registered, which can fail.

    Raises:
        FtpackError: whatever is wrong with the input, before any long work.
        PromptDifferenceError: if a prompt or a token id differs from training; the bundle is kept.
        DaemonError: if the daemon cannot be reached or refuses the model; the bundle is kept, and
            the next step is the command that registers it.
    """
    progress = progress or Silent()
    _require_names(request, request.name)
    request = _for_server(request, daemon)
    with scratch_folder() as scratch:
        package = prepare(request, scratch, progress)
        _require_names(request, package.name)
        _require_room(package, daemon, progress)
        built = build(package, progress)
        on_built(built)
        _compare_built(request, package, built, conversations, scratch, progress)
    with _register_command_on_error(built, package.name):
        registered = register(
            built.bundle, daemon, package.name, progress,
            conversations=conversations, force=request.force,
        )  # fmt: skip
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
    """Refuse a name that Ollama or several quants cannot have; None has still to be chosen."""
    if name:
        model_names(name, [quant.name for quant in request.build.wanted])


def _for_server(request: Request, daemon: Daemon) -> Request:
    """The request for the server's version, unless it already names one or no server answers."""
    if request.prompt.ollama_version is not None or not daemon.is_reachable():
        return request
    version = OllamaVersion.of_server(daemon.version())
    return replace(request, prompt=replace(request.prompt, ollama_version=version))


def _require_room(package: Package, daemon: Daemon, progress: Progress) -> None:
    """Refuse a model for which Ollama has no room; without a server, say that it is only built."""
    if daemon.is_reachable():
        require_store_space(daemon, [file.typed.size_bytes for file in package.files])
    else:
        progress.warn(f"No Ollama answers at {daemon.host}; the bundle is built and kept")


@contextmanager
def _register_command_on_error(built: Built, name: str) -> Iterator[None]:
    """Add the command that registers the finished bundle to a daemon's error."""
    try:
        yield
    except DaemonError as error:
        then = f"Then: ftpack register {built.bundle.folder} --name {name}"
        error.next_step = f"{error.next_step} {then}".strip()
        raise


def _compare_built(
    request: Request,
    package: Package,
    built: Built,
    conversations: Sequence[Conversation],
    scratch: Path,
    progress: Progress,
) -> None:
    """Compare the prompts and token ids of the built GGUF with those of training."""
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
                f"{built.bundle.folder} is built, but not registered",
                # Unlike a bundle, the source has a tokenizer, with whose ids to compare.
                f"See `ftpack prompt {request.source.source}`, or register it with --force.",
            )
        except PromptDifferenceError as error:
            refuse_unless(request.force, error, progress)
