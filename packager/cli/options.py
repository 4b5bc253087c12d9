"""Options that several verbs share; each group becomes one typed argument of the verb."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from packager.cli.console import Console, quiet_libraries
from packager.cli.option_types import (
    ContextType,
    ParameterType,
    QuantType,
    RendererType,
    VersionType,
)
from packager.merge.merge_options import Combination, MergeOptions
from packager.package.request import BuildOptions, Request
from packager.prompt.prompt_options import PromptOptions
from packager.source.source_options import SourceOptions

if TYPE_CHECKING:
    from packager.bundle.bundle import Bundle
    from packager.prompt.conversation import Conversation
    from packager.verbs.run import ChatOptions

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Values = Mapping[str, Any]

_SOURCE: tuple[Decorator, ...] = (
    click.argument("source"),
    click.option("--base", metavar="PATH_OR_ID",
                 help="The base model of the adapter: a folder, a Hub id, or "
                 "modelscope://ORG/NAME."),
    click.option("--adapter", "adapters", multiple=True, metavar="PATH_OR_ID",
                 help="One more adapter, merged after SOURCE, or into SOURCE if that is a full "
                 "model. Can be repeated."),
    click.option("--keep-base-quantized", is_flag=True,
                 help="Merge into the dequantized weights of a bnb-4bit base, which training "
                 "used, instead of its 16-bit original. In both cases, ftpack measures and "
                 "reports how close the result is to the trained model."),
    click.option("--checkpoint", metavar="N|best|last",
                 help="The training checkpoint to use; by default the run's final save."),
    click.option("--revision", metavar="REV",
                 help="The branch, tag or commit of SOURCE's id; or of the base's, if SOURCE is a "
                 "folder."),
)  # fmt: skip
_MERGE: tuple[Decorator, ...] = (
    click.option("--combine", metavar="METHOD",
                 help="Combine the adapters into one by PEFT's add_weighted_adapter: linear, cat, "
                 "svd, ties, dare_linear, dare_ties, magnitude_prune, ..."),
    click.option("--weight", "weights", multiple=True, type=float, metavar="W",
                 help="With --combine: the weight of an adapter. Repeat it for each one, in "
                 "order; by default each has 1."),
    click.option("--density", type=float, metavar="D",
                 help="With --combine ties, dare_... or magnitude_prune: the fraction of the "
                 "values to keep, above 0 and up to 1."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N",
                 help="With --combine dare_...: torch's random seed."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                 show_default=True, help="Where to merge."),
)  # fmt: skip
_BUILD: tuple[Decorator, ...] = (
    click.option("--quant", "quants", multiple=True, type=QuantType(), metavar="Q",
                 help="llama.cpp's name of a quant, such as q5_k_m (the default). Can be repeated: "
                 "all are made in one pass over the weights."),
    click.option("--out", type=click.Path(file_okay=False, path_type=Path),
                 help="The bundle's folder; by default NAME-gguf."),
    click.option("--threads", type=click.IntRange(min=0, max=512), default=0, metavar="N",
                 help="The number of threads that quantize; by default one per core."),
    click.option("--text-only", is_flag=True,
                 help="Make only the text model of a multimodal model, without its mmproj."),
)  # fmt: skip
_PROMPT: tuple[Decorator, ...] = (
    click.option("--system", metavar="TEXT", help="The default system prompt."),
    click.option("--param", "parameters", multiple=True, type=ParameterType(), metavar="K=V",
                 help="An Ollama parameter, such as num_ctx=8192. Can be repeated."),
    click.option("--stop", "stops", multiple=True, metavar="S",
                 help="One more stop string. Can be repeated."),
    click.option("--template", "renderer", type=RendererType(), default="auto",
                 metavar="auto|native|go|FILE",
                 help="Who renders prompts: the GGUF's own chat template (native) or an Ollama "
                 "template (go). A FILE is the Jinja chat template that training used."),
    click.option("--thinking", type=click.Choice(["as-trained", "on", "off"]),
                 default="as-trained", show_default=True,
                 help="Whether the model was trained to think."),
    click.option("--preset", metavar="NAME",
                 help="Write the sampling settings that the model's authors publish; the run names "
                 "the presets that fit."),
    click.option("--context", "context_length", type=ContextType(), metavar="N|Nk",
                 help="The context in tokens; if it is longer than the model's own, YaRN extends "
                 "that."),
    click.option("--ollama-version", type=VersionType(), metavar="V",
                 help="The Ollama version to package for; by default that of the server, or the "
                 "newest known one if no server answers."),
)  # fmt: skip
dry_run_option = click.option("--dry-run", is_flag=True,
                              help="Show what would be made, and what it costs.")  # fmt: skip
host_option = click.option("--host", metavar="HOST",
                           help="The Ollama server; by default OLLAMA_HOST, or else this "
                           "machine's.")  # fmt: skip


def name_option(default: str) -> Decorator:
    """`--name`, and the name that a model has without it."""
    return click.option("--name", metavar="NAME", help=f"The model's name; by default {default}.")


def force_option(covers: str) -> Decorator:
    """`--force`, and what it covers for a verb (see `packager.override`)."""
    return click.option("--force", is_flag=True, help=f"Warn instead of refusing: {covers}.")


def request_options(*, build: bool = False, prompt: bool = False) -> Callable[[Command], Command]:
    """SOURCE and the options of its stages; the verb gets `request: Request`.

    Args:
        build: whether to add the options of `BuildOptions`.
        prompt: whether to add those of `PromptOptions`.
    """

    def make(values: Values) -> Request:
        return Request(
            source=_source(values),
            merge=_merge(values),
            prompt=_prompt(values) if prompt else PromptOptions(),
            build=_build(values) if build else BuildOptions(),
            name=values.get("name"),
            force=values.get("force", False),
        )

    options = (*_SOURCE, *_MERGE, *(_BUILD if build else ()), *(_PROMPT if prompt else ()))
    return _grouped("request", make, options, also=("name", "force"))


@dataclass(frozen=True)
class Output:
    """How results and progress are printed.

    Attributes:
        as_json: whether results are JSON.
        console: receives the progress.
    """

    as_json: bool
    console: Console


def output_options() -> Callable[[Command], Command]:
    """`--json`, `--quiet` and `--verbose`; the verb gets `output: Output`."""
    options: tuple[Decorator, ...] = (
        click.option("--json", "as_json", is_flag=True, help="Print results as JSON."),
        click.option("-q", "--quiet", is_flag=True,
                     help="Print only results, warnings and errors."),
        click.option("-v", "--verbose", is_flag=True,
                     help="Show tracebacks, and the logs of libraries."),
    )  # fmt: skip

    def make(values: Values) -> Output:
        quiet_libraries(is_verbose=values["verbose"])
        return Output(values["as_json"], Console(is_quiet=values["quiet"]))

    return _grouped("output", make, options)


def conversations_option() -> Callable[[Command], Command]:
    """`--conversations`; the verb gets `conversations`: the user's own, then the built-in ones."""
    option = click.option(
        "--conversations", "own_conversations", type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE", help="Also compare the prompts of the conversations in this JSONL file, in "
        "a format that trainers read.",
    )  # fmt: skip

    def make(values: Values) -> tuple[Conversation, ...]:
        from packager.prompt.conversation import BATTERY
        from packager.verify.dataset import read_conversations

        own = values["own_conversations"]
        return (*read_conversations(own), *BATTERY) if own else BATTERY

    return _grouped("conversations", make, (option,))


def bundle_argument() -> Callable[[Command], Command]:
    """BUNDLE and `--quant`; the verb gets `bundle: Bundle`, whose `ggufs` are those quants."""
    options: tuple[Decorator, ...] = (
        click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path)),
        click.option("--quant", "quants", multiple=True, type=QuantType(), metavar="Q",
                     help="One of the bundle's quants; by default all. Can be repeated."),
    )  # fmt: skip

    def make(values: Values) -> Bundle:
        from packager.bundle.bundle import read_bundle

        return read_bundle(values["folder"]).select([quant.name for quant in values["quants"]])

    return _grouped("bundle", make, options)


def chat_options() -> Callable[[Command], Command]:
    """How to chat with a model; the verb gets `chat: ChatOptions`."""
    options: tuple[Decorator, ...] = (
        click.option("--quant", type=QuantType(), metavar="Q",
                     help="The quant of the bundle to use; by default the first."),
        click.option("--system", metavar="TEXT",
                     help="The system prompt; by default the bundle's."),
        click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True,
                     metavar="N", help="The length in tokens at which an answer is cut."),
        click.option("--threads", type=click.IntRange(min=0, max=512), default=0, metavar="N",
                     help="The number of threads; by default one per core."),
        click.option("--param", "parameters", multiple=True, type=ParameterType(), metavar="K=V",
                     help="A parameter by Ollama's name, such as temperature=0. Can be repeated."),
    )  # fmt: skip

    def make(values: Values) -> ChatOptions:
        from packager.verbs.run import ChatOptions

        quant = values["quant"]
        return ChatOptions(
            quant=quant and quant.name,
            system=values["system"],
            max_tokens=values["max_tokens"],
            threads=values["threads"],
            parameters=dict(values["parameters"]),
        )

    return _grouped("chat", make, options)


def _grouped(
    into: str,
    make: Callable[[Values], object],
    options: tuple[Decorator, ...],
    also: tuple[str, ...] = (),
) -> Callable[[Command], Command]:
    """Add options to a command, which gets one argument instead of their values.

    Args:
        into: the argument's name.
        make: makes the argument from the options' values, by name.
        options: click's decorators.
        also: further options, added elsewhere, that `make` uses if the command has them.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def grouped(**values: Any) -> Any:
            own = {name: values.pop(name) for name in names if name in values}
            return command(**values, **{into: make(own)})

        outer = _params(grouped)
        for option in reversed(options):
            option(grouped)
        names = {str(each.name) for each in _params(grouped)[len(outer) :]} | set(also)
        return grouped  # type: ignore[return-value]

    return decorate


def _params(command: Callable[..., Any]) -> list[click.Parameter]:
    return list(getattr(command, "__click_params__", ()))


def _source(values: Values) -> SourceOptions:
    return SourceOptions(
        values["source"],
        adapters=values["adapters"],
        base=values["base"],
        keep_base_quantized=values["keep_base_quantized"],
        checkpoint=values["checkpoint"],
        revision=values["revision"],
    )


def _merge(values: Values) -> MergeOptions:
    combination = Combination.parse(
        values["combine"], values["weights"], values["density"], values["seed"]
    )
    return MergeOptions(device=values["device"], combination=combination)


def _build(values: Values) -> BuildOptions:
    return BuildOptions(
        quants=values["quants"],
        out=values["out"],
        text_only=values["text_only"],
        threads=values["threads"],
    )


def _prompt(values: Values) -> PromptOptions:
    renderer = values["renderer"]
    is_file = isinstance(renderer, Path)
    return PromptOptions(
        renderer="auto" if is_file else renderer,
        chat_template_file=renderer if is_file else None,
        thinking=values["thinking"],
        system=values["system"],
        stops=values["stops"],
        parameters=dict(values["parameters"]),
        preset=values["preset"],
        context_length=values["context_length"],
        ollama_version=values["ollama_version"],
    )
