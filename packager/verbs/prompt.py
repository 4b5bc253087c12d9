"""`ftpack prompt`: the prompts of a source, bundle or model, compared with training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.bundle import Bundle, is_bundle, read_bundle
from packager.errors import NotAModelError, UnsupportedError
from packager.files import scratch_folder
from packager.gguf.types import write_skeleton
from packager.package.prepare import prepare
from packager.package.request import Request
from packager.progress import Progress, Silent
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Comparison
from packager.prompt.conversation import BATTERY, Conversation
from packager.prompt.native import make_native
from packager.prompt.template_record import recorded_template
from packager.runtime.daemon import Daemon
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.renderers import (
    compare_embedded,
    compare_gguf,
    compare_offline,
    compare_on_daemon,
)

_BLOB = re.compile(r"^FROM (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class PromptReport:
    """A model's prompts, compared in each place that renders them.

    Attributes:
        name: the model's name.
        chat_template: the training chat template.
        reason: who renders prompts, and why.
        comparisons: one for each place: offline, embedded, the daemon.
        vocabulary: the GGUF's token ids compared on a corpus; None if there is no tokenizer to
            compare them with.
    """

    name: str
    chat_template: ChatTemplate
    reason: str
    comparisons: tuple[Comparison, ...]
    vocabulary: Comparison | None = None

    @property
    def all_comparisons(self) -> tuple[Comparison, ...]:
        """The comparisons of the prompts, and that of the vocabulary if there is one."""
        more = () if self.vocabulary is None else (self.vocabulary,)
        return (*self.comparisons, *more)


def prompt(
    request: Request,
    daemon: Daemon | None = None,
    progress: Progress | None = None,
    *,
    conversations: Sequence[Conversation] = BATTERY,
) -> PromptReport:
    """The prompts offline, on the embedded runtime, and on a daemon, compared with training.

    A model that is only registered is compared on its daemon alone.

    Args:
        request: its `source` is anything that can be packaged, a bundle, or the name of a
            registered model; `name` is the registered model's, if it differs from the source's.
        daemon: where the model is registered; None to compare without a daemon.
        progress: receives every choice, and the reason for it.
        conversations: the conversations to compare.

    Raises:
        DaemonError: if the daemon cannot be reached, or does not have the model.
        UnsupportedError: if it is too old to show what it renders.
        FtpackError: if there is no such source, or it has no chat template.
    """
    if daemon is not None:
        daemon.version()  # before a base is downloaded for a server that does not answer
    source = request.source.source
    path = Path(source)
    if is_bundle(path):
        return _compare_bundle(read_bundle(path), request.name, daemon, conversations)
    if not path.exists():
        server = daemon or Daemon()
        if server.is_reachable() and server.has_model(source):
            return _compare_registered(source, server, conversations)
    return _compare_source(request, daemon, conversations, progress or Silent())


def _compare_bundle(
    bundle: Bundle,
    name: str | None,
    daemon: Daemon | None,
    conversations: Sequence[Conversation],
) -> PromptReport:
    manifest = bundle.manifest
    record = manifest.prompt
    chat_template = recorded_template(record.trained, record.template_origin or str(bundle.folder))
    native = make_native(chat_template).chat_template
    comparisons = [compare_offline(chat_template, native, record.ollama_template, conversations)]
    gguf = bundle.path(bundle.ggufs[0])
    if gguf.is_file():
        with GgufVocabulary(gguf) as vocabulary:
            comparisons.append(compare_embedded(chat_template, vocabulary, conversations, None))
    name = name or manifest.name
    if daemon is not None:
        comparisons.append(
            compare_on_daemon(
                chat_template, daemon, name, conversations, record.system,
                is_by_template=record.ollama_template is not None,
            )
        )  # fmt: skip
    return PromptReport(name, chat_template, record.reason, tuple(comparisons))


def _compare_source(
    request: Request,
    daemon: Daemon | None,
    conversations: Sequence[Conversation],
    progress: Progress,
) -> PromptReport:
    with scratch_folder() as scratch:
        package = prepare(request, scratch, progress, will_build=False)
        plan = package.prompt
        chat_template, modelfile = plan.chat_template, plan.modelfile
        native = make_native(chat_template).chat_template
        offline = compare_offline(chat_template, native, modelfile.ollama_template, conversations)
        gguf = scratch / "vocabulary.gguf"
        write_skeleton(gguf, package.text)
        compared = compare_gguf(chat_template, package.inputs.files, gguf, conversations, scratch)
    comparisons = [offline, compared.prompts]
    if daemon is not None:
        comparisons.append(
            compare_on_daemon(
                chat_template, daemon, package.name, conversations, modelfile.system,
                is_by_template=modelfile.ollama_template is not None,
            )
        )  # fmt: skip
    return PromptReport(
        package.name, chat_template, plan.decision.reason, tuple(comparisons), compared.vocabulary
    )


def _compare_registered(
    name: str, daemon: Daemon, conversations: Sequence[Conversation]
) -> PromptReport:
    """Compare a registered model with the chat template that its own GGUF contains."""
    model = daemon.show(name)
    match = _BLOB.search(model.modelfile)
    blob = Path(match[1].strip()) if match else None
    if blob is None or not blob.is_file():
        raise UnsupportedError(
            f"The GGUF of {name} at {daemon.host} cannot be read from here, so its training chat "
            "template is unknown.",
            next_step=f"Name the bundle or the source: ftpack prompt SOURCE --name {name} "
            f"--against {daemon.host}.",
        )
    chat_template = _template_of(name, blob)
    comparison = compare_on_daemon(
        chat_template, daemon, name, conversations, model.system,
        is_by_template=model.template_in_force == "TEMPLATE",
    )  # fmt: skip
    reason = f"{model.template_in_force} renders at {daemon.host}"
    return PromptReport(name, chat_template, reason, (comparison,))


def _template_of(name: str, blob: Path) -> ChatTemplate:
    with GgufVocabulary(blob) as vocabulary:
        source = vocabulary.chat_template
        bos, eos = vocabulary.token("bos"), vocabulary.token("eos")
    if source is None:
        raise NotAModelError(
            f"The GGUF of {name} contains no chat template to compare with.",
            next_step="Name the bundle or the source instead of the model.",
        )
    return ChatTemplate(source, f"the GGUF of {name}", bos or None, eos or None)
