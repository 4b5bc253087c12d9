"""Every real chat template of the toolchain, compared on a real Ollama daemon.

`scripts/prompt-sweep [NAME...]` prints a table: for each kind of conversation, how many prompts are
equal, how many have a known difference, and how many differ. A small model is written for each chat
template; the daemon renders its prompts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.errors import ChatTemplateError
from packager.gguf.toolchain import find_toolchain
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.comparison import ComparedPrompt, Comparison, compare
from packager.prompt.conversation import BATTERY, Kind
from packager.prompt.decision import PromptDecision, decide
from packager.runtime.daemon import Daemon
from packager.verify.renderers import daemon_renderer
from tests.daemon import find_ollama, running_daemon
from tests.runtime.chain_gguf import write_chain_gguf

KINDS: tuple[Kind, ...] = ("core", "prefill", "tools", "thinking")
BOS, EOS = "<s>", "</s>"
# Some of these chat templates contain a long system text.
_CONTEXT = "16384"


@dataclass(frozen=True)
class SweepResult:
    """The result for one chat template.

    Attributes:
        name: its file name, without the suffix.
        decision: who renders; None if it is refused.
        refusal: the reason, if it is refused.
        comparison: of its prompts on the daemon.
        capabilities: the abilities that the daemon reports.
    """

    name: str
    decision: PromptDecision | None
    refusal: str | None = None
    comparison: Comparison | None = None
    capabilities: tuple[str, ...] = ()


@contextmanager
def sweeping_daemon(ollama_binary: Path, folder: Path) -> Iterator[Daemon]:
    """A daemon with a context for the longest of the chat templates."""
    environment = {"OLLAMA_CONTEXT_LENGTH": _CONTEXT}
    with running_daemon(ollama_binary, folder, environment) as running:
        yield Daemon(running.host)


def sweep_one(path: Path, daemon: Daemon, folder: Path) -> SweepResult:
    """Decide on a chat template, register a small model with it, and compare its prompts."""
    name = path.stem
    chat_template = ChatTemplate(path.read_text(encoding="utf-8"), path.name, BOS, EOS)
    vocabulary = Vocabulary((2,), {1: BOS, 2: EOS}, frozenset({BOS, EOS}))
    try:
        decision = decide(chat_template, vocabulary)
    except ChatTemplateError as error:
        return SweepResult(name, None, error.message)
    gguf = write_chain_gguf(
        folder / "model.gguf",
        chat_template=decision.gguf_chat_template,
        adds_bos=decision.begins_with_bos,
    )
    model = "sweep-" + name.lower()
    daemon.create(
        model,
        {gguf.name: daemon.upload(gguf)},
        ollama_template=decision.ollama_template,
        system=None,
        stops=(),
        parameters={},
    )
    comparison = compare(chat_template, BATTERY, daemon_renderer(daemon, model), daemon.host)
    capabilities = daemon.show(model).capabilities
    daemon.delete(model)
    return SweepResult(name, decision, None, comparison, capabilities)


def line(result: SweepResult) -> str:
    """One line of the table."""
    if result.decision is None or result.comparison is None:
        return f"{result.name:<50} refused: {result.refusal}"
    cells = [f"{result.name:<50} {result.decision.renderer:<9}"]
    for kind in KINDS:
        of_kind = [item for item in result.comparison.compared if item.conversation.kind == kind]
        counts = (
            _count(of_kind, outcome) for outcome in ("equal", "known_difference", "different")
        )
        cells.append(" ".join(f"{count:>3}" for count in counts))
    pins = ", ".join(f"{name} = {value}" for name, value in result.decision.pins.items())
    return " | ".join([*cells, ", ".join(result.capabilities), pins])


def _count(compared: Sequence[ComparedPrompt], outcome: str) -> int:
    return sum(item.outcome == outcome for item in compared)


def templates(llama_cpp: Path, names: Sequence[str] = ()) -> list[Path]:
    """The toolchain's real chat templates, or those whose names contain one of `names`."""
    paths = sorted((llama_cpp / "models" / "templates").glob("*.jinja"))
    return [path for path in paths if not names or any(name in path.stem for name in names)]


def main() -> None:
    """Sweep, print the table, and fail if a prompt differs for no known cause."""
    parser = argparse.ArgumentParser(prog="scripts/prompt-sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="parts of template names; by default all")
    parser.add_argument("--diff", action="store_true", help="show what differs")
    options = parser.parse_args()
    binary = find_ollama()
    if binary is None:
        sys.exit("There is no Ollama here; scripts/install-ollama builds one.")
    head = [f"{kind:<11}" for kind in KINDS]
    print(
        " | ".join(
            [f"{'equal, known difference, different:':<60}", *head, "the daemon reports", "pinned"]
        )
    )
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with sweeping_daemon(binary, folder / "ollama") as daemon:
            for path in templates(find_toolchain().folder, options.names):
                result = sweep_one(path, daemon, folder)
                print(line(result), flush=True)
                different = [
                    item
                    for item in (result.comparison.compared if result.comparison else ())
                    if item.outcome == "different"
                ]
                failed += len(different)
                for item in different if options.diff else ():
                    print(f"  {item.conversation.name}: {item.expected!r}\n   -> {item.rendered!r}")
                    print(f"   {item.causes}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
