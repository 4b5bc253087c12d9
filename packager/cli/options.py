"""The options that several verbs share, and the request that they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from packager.cli.console import Console
from packager.gguf.quants import QUANTS, parse_quant
from packager.package.plan import Request

if TYPE_CHECKING:
    _StrType = click.ParamType[str]
    _IntType = click.ParamType[int]
    _PairType = click.ParamType[tuple[str, int | float | str | bool]]
else:  # only newer releases of Click let it be subscripted when the program runs
    _StrType = _IntType = _PairType = click.ParamType

Command = TypeVar("Command", bound=Callable[..., Any])


class QuantType(_StrType):
    """A quant's name in any case; a wrong one lists the near ones."""

    name = "quant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as llama.cpp writes it."""
        return parse_quant(str(value)).name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The quants that begin with what was typed, in its case."""
        from click.shell_completion import CompletionItem

        names = [name if incomplete.isupper() else name.lower() for name in QUANTS]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ParameterType(_PairType):
    """`KEY=VALUE`, the value a number where it reads as one."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | float | str | bool]:
        """The key, and the typed value."""
        if isinstance(value, tuple):
            return value
        key, mark, text = str(value).partition("=")
        if not mark or not key.isidentifier():
            self.fail(f"{value!r} is not of the form KEY=VALUE, such as temperature=0.7.")
        if text.lower() in ("true", "false"):
            return key, text.lower() == "true"
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            if not math.isfinite(value):
                self.fail(f"{text} is no number that {key} could be.")
            return key, value
        return key, text


class ContextType(_IntType):
    """A number of tokens, `131072` or `128k`."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of tokens."""
        text = str(value).lower()
        number, unit = (text[:-1], 1024) if text.endswith("k") else (text, 1)
        if not number.isdecimal() or not int(number):
            self.fail(f"{value!r} is no number of tokens, such as 32768 or 32k.")
        return int(number) * unit


def _stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def source_options() -> Callable[[Command], Command]:
    """SOURCE, and what finds it and its base."""
    return _stack(
        click.argument("source"),
        click.option("--base", metavar="PATH_OR_ID",
                     help="The base model of the adapter; ids are the Hub's, or "
                     "modelscope://ORG/NAME."),
        click.option("--adapter", "adapters", multiple=True, metavar="PATH_OR_ID",
                     help="One more adapter, merged after SOURCE; or onto it, where it is a full "
                     "model."),
        click.option("--combine", metavar="METHOD",
                     help="Combine the adapters by PEFT's add_weighted_adapter instead: linear, "
                     "cat, svd, ties, dare_linear, dare_ties, magnitude_prune, ..."),
        click.option("--weight", "weights", multiple=True, type=float, metavar="W",
                     help="For --combine: one for each adapter, in their order; 1 by default."),
        click.option("--density", type=float, metavar="D",
                     help="For --combine ties, dare_... and magnitude_prune: the part of the "
                     "values that is kept, above 0 to 1."),
        click.option("--seed", type=int, default=0, help="For --combine dare_...: torch's seed."),
        click.option("--keep-base-quantized", is_flag=True,
                     help="Merge into the dequantized weights of a bnb-4bit base, as they were in "
                     "training, and not into its 16-bit twin, which has what the rounding lost. "
                     "How far either is from what was trained is told."),
        click.option("--checkpoint", metavar="N|best|last", help="Which checkpoint of a Trainer."),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of the id."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                     show_default=True, help="Where to merge."),
    )  # fmt: skip


def model_options() -> Callable[[Command], Command]:
    """What the bundle holds."""
    return _stack(
        click.option("--quant", "quants", multiple=True, type=QuantType(), metavar="Q",
                     help="llama.cpp's name, such as q5_k_m (the default); several are made "
                     "from one read."),
        click.option("--name", help="The model's name; by default its folder's."),
        click.option("--out", type=click.Path(file_okay=False, path_type=Path),
                     help="The bundle's folder; by default NAME-gguf."),
        click.option("--threads", type=click.IntRange(min=0, max=512), default=0,
                     help="Threads that quantize; by default one per core."),
        click.option("--text-only", is_flag=True,
                     help="Of a model that sees or hears, make the text model alone, without its "
                     "mmproj."),
        click.option("--dry-run", is_flag=True, help="Show what would be made, and what it costs."),
        click.option("--force", is_flag=True,
                     help="Overwrite another model's files in --out; with `ollama`, also register "
                     "where a prompt differs."),
    )  # fmt: skip


def prompt_options() -> Callable[[Command], Command]:
    """What the Modelfile says."""
    return _stack(
        click.option("--system", metavar="TEXT", help="A system prompt."),
        click.option("--param", "parameters", multiple=True, type=ParameterType(),
                     metavar="K=V", help="A parameter of Ollama, such as num_ctx=8192."),
        click.option("--stop", "stops", multiple=True, metavar="S", help="One more stop string."),
        click.option("--template", default="auto", metavar="auto|native|go|FILE",
                     help="Who renders the prompt: the GGUF's own template (native) or an Ollama "
                     "TEMPLATE (go); or the Jinja chat template of training."),
        click.option("--thinking", type=click.Choice(["as-trained", "on", "off"]),
                     default="as-trained", show_default=True,
                     help="Whether the model was trained to think."),
        click.option("--preset", metavar="NAME",
                     help="Write the sampling that the model's authors publish; the run names "
                     "what there is."),
        click.option("--context", "context_length", type=ContextType(), metavar="N|Nk",
                     help="The context in tokens; YaRN stretches the model's own where it has to."),
        click.option("--ollama-version", metavar="V",
                     help="The server's; by default it is asked, else the newest known."),
    )  # fmt: skip


def conversations_option() -> Callable[[Command], Command]:
    """The user's own conversations, for the proof."""
    return click.option(
        "--conversations", type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE", help="Prove these too: JSONL as trainers read it.",
    )  # fmt: skip


def output_options() -> Callable[[Command], Command]:
    """How much is said."""
    return _stack(
        click.option("--json", "as_json", is_flag=True, help="Results as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Results and errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Tracebacks, and the libraries' logs."),
    )


def make_request(options: dict[str, Any]) -> Request:
    """The request that a verb's options mean; options of other kinds are left alone."""
    names = Request.__dataclass_fields__
    chosen = {key: value for key, value in options.items() if key in names and value is not None}
    if "parameters" in chosen:
        chosen["parameters"] = dict(chosen["parameters"])
    return Request(**chosen)


def console_for(options: dict[str, Any]) -> Console:
    """Where a verb's progress goes; the libraries' own chatter only with -v."""
    quiet_libraries(is_verbose=options["verbose"])
    return Console(is_quiet=options["quiet"])


def quiet_libraries(*, is_verbose: bool) -> None:
    """Keep the log lines and warnings of transformers and others off the screen."""
    import logging
    import os
    import warnings

    if is_verbose:
        logging.basicConfig(level=logging.INFO)
        return
    warnings.simplefilter("ignore")
    # It warns of a kernel for inference that is missing; nothing here infers.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
