"""The prompt of a source, a bundle or a registered model, proved wherever it can be rendered."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.bundle import read_bundle
from packager.bundle.manifest import MANIFEST
from packager.errors import NotAModelError, UnsupportedError
from packager.gguf.types import write_skeleton
from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.package.prompt_choice import recorded_template
from packager.progress import Progress
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import Proof
from packager.prompt.conversation import Conversation
from packager.prompt.native import make_native
from packager.runtime.daemon import Daemon
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.renderers import prove_built, prove_embedded, prove_offline, prove_on_daemon

_BLOB = re.compile(r"^FROM (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class ProvedPrompt:
    """A prompt, proved.

    Attributes:
        name: the model's name.
        chat_template: the one of training.
        reason: who renders and why; empty where that is the daemon's affair.
        proofs: one for each place where it was rendered.
        vocabulary: the GGUF's vocabulary on a corpus, where there is a tokenizer to compare with.
    """

    name: str
    chat_template: ChatTemplate
    reason: str
    proofs: tuple[Proof, ...]
    vocabulary: Proof | None = None

    @property
    def all_proofs(self) -> tuple[Proof, ...]:
        """Those of the prompts, and that of the vocabulary where there is one."""
        return self.proofs if self.vocabulary is None else (*self.proofs, self.vocabulary)


def prove_prompt(
    request: Request,
    conversations: Sequence[Conversation],
    daemon: Daemon | None,
    progress: Progress,
) -> ProvedPrompt:
    """Prove a prompt offline, on the embedded runtime, and on a daemon where one is given.

    Args:
        request: its `source` is a source, a bundle, or the name of a registered model.
        conversations: what is compared.
        daemon: where the model is registered, under `name` or else the source's name.
        progress: told what was chosen.

    Raises:
        FtpackError: if there is no such thing, or it has no chat template.
    """
    path = Path(request.source)
    if (path / MANIFEST).is_file():
        return _of_bundle(path, request, conversations, daemon)
    if not path.exists():
        there = daemon or Daemon()
        if there.is_reachable() and there.has_model(request.source):
            return _of_model(request.source, conversations, there)
    return _of_source(request, conversations, daemon, progress)


def _of_bundle(
    folder: Path,
    request: Request,
    conversations: Sequence[Conversation],
    daemon: Daemon | None,
) -> ProvedPrompt:
    manifest = read_bundle(folder)
    prompt = manifest.prompt
    chat_template = recorded_template(prompt.trained, prompt.template_origin or str(folder))
    native = make_native(chat_template).chat_template
    proofs = [prove_offline(chat_template, native, prompt.template, conversations)]
    gguf = folder / manifest.ggufs[0].name
    if gguf.is_file():
        with GgufVocabulary(gguf) as vocabulary:
            proofs.append(prove_embedded(chat_template, vocabulary, conversations, None))
    name = request.name or manifest.name
    if daemon is not None:
        proofs.append(
            prove_on_daemon(
                chat_template, daemon, name, conversations, prompt.system,
                is_by_template=prompt.template is not None,
            )
        )  # fmt: skip
    return ProvedPrompt(name, chat_template, prompt.reason, tuple(proofs))


def _of_source(
    request: Request,
    conversations: Sequence[Conversation],
    daemon: Daemon | None,
    progress: Progress,
) -> ProvedPrompt:
    package = prepare(request, progress)
    chat_template, decision = package.chat_template, package.decision
    native = make_native(chat_template).chat_template
    template = package.modelfile.template
    proofs = [prove_offline(chat_template, native, template, conversations)]
    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        gguf = Path(scratch) / "vocabulary.gguf"
        write_skeleton(gguf, package.conversion)
        embedded, vocabulary = prove_built(package, gguf, conversations)
        proofs.append(embedded)
    if daemon is not None:
        system = package.modelfile.system
        proofs.append(
            prove_on_daemon(
                chat_template, daemon, package.name, conversations, system,
                is_by_template=template is not None,
            )
        )  # fmt: skip
    return ProvedPrompt(package.name, chat_template, decision.reason, tuple(proofs), vocabulary)


def _of_model(name: str, conversations: Sequence[Conversation], daemon: Daemon) -> ProvedPrompt:
    """A registered model, held against the chat template that its own GGUF carries."""
    shown = daemon.show(name)
    found = _BLOB.search(shown.modelfile)
    blob = Path(found[1].strip()) if found else None
    if blob is None or not blob.is_file():
        raise UnsupportedError(
            f"The GGUF of {name} at {daemon.host} cannot be read from here, and without it nobody "
            "knows the chat template of training.",
            next_step=f"Give the bundle or the source: ftpack prompt SOURCE --name {name} "
            f"--against {daemon.host}.",
        )
    with GgufVocabulary(blob) as vocabulary:
        source = vocabulary.chat_template
        bos, eos = vocabulary.token("bos"), vocabulary.token("eos")
    if source is None:
        raise NotAModelError(
            f"The GGUF of {name} carries no chat template to compare with.",
            next_step="Give the bundle or the source in place of the name.",
        )
    chat_template = ChatTemplate(source, f"the GGUF of {name}", bos or None, eos or None)
    proof = prove_on_daemon(
        chat_template, daemon, name, conversations, shown.system,
        is_by_template=shown.template_in_force == "TEMPLATE",
    )  # fmt: skip
    reason = f"{shown.template_in_force} renders at {daemon.host}"
    return ProvedPrompt(name, chat_template, reason, (proof,))
