"""The options that several verbs share; each group becomes one typed argument of the verb."""

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
                 help="One more adapter, merged after SOURCE; or into it, if SOURCE is a full "
                 "model."),
    click.option("--keep-base-quantized", is_flag=True,
                 help="Merge into the dequantized weights of a bnb-4bit base, as training saw "
                 "them, and not into its 16-bit original, which has what rounding lost. Either "
                 "way, how close the result is to what was trained is measured and reported."),
    click.option("--checkpoint", metavar="N|best|last",
                 help="Which training checkpoint; by default the run's final save."),
    click.option("--revision", metavar="REV", help="Branch, tag or commit of the id."),
)  # fmt: skip
_MERGE: tuple[Decorator, ...] = (
    click.option("--combine", metavar="METHOD",
                 help="Combine the adapters into one by PEFT's add_weighted_adapter: linear, cat, "
                 "svd, ties, dare_linear, dare_ties, magnitude_prune, ..."),
    click.option("--weight", "weights", multiple=True, type=float, metavar="W",
                 help="With --combine: one for each adapter, in order; 1 each by default."),
    click.option("--density", type=float, metavar="D",
                 help="With --combine ties, dare_... or magnitude_prune: the fraction of the "
                 "values to keep, above 0 and up to 1."),
    click.option("--seed", type=int, default=0, help="With --combine dare_...: torch's seed."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                 show_default=True, help="Where to merge."),
)  # fmt: skip
_BUILD: tuple[Decorator, ...] = (
    click.option("--quant", "quants", multiple=True, type=QuantType(), metavar="Q",
                 help="llama.cpp's name of a quant, such as q5_k_m (the default). Can be repeated: "
                 "all are made in one pass over the weights."),
    click.option("--out", type=click.Path(file_okay=False, path_type=Path),
                 help="The bundle's folder; by default NAME-gguf."),
    click.option("--threads", type=click.IntRange(min=0, max=512), default=0,
                 help="Threads that quantize; by default one per core."),
    click.option("--text-only", is_flag=True,
                 help="Make only the text model of a multimodal model, without its mmproj."),
)  # fmt: skip
_PROMPT: tuple[Decorator, ...] = (
    click.option("--system", metavar="TEXT", help="A system prompt."),
    click.option("--param", "parameters", multiple=True, type=ParameterType(),
                 metavar="K=V", help="An Ollama parameter, such as num_ctx=8192."),
    click.option("--stop", "stops", multiple=True, metavar="S", help="One more stop string."),
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
                 help="The context in tokens; YaRN extends the model's own if need be."),
    click.option("--ollama-version", type=VersionType(), metavar="V",
                 help="The server's version; by default the server is asked, else the newest known "
                 "version is assumed."),
)  # fmt: skip
name_option = click.option("--name", help="The model's name; by default that of its folder.")
dry_run_option = click.option("--dry-run", is_flag=True,
                              help="Show what would be made, and what it costs.")  # fmt: skip
host_option = click.option("--host", help="The Ollama server; by default OLLAMA_HOST, else this "
                           "machine's.")  # fmt: skip


def force_option(covers: str) -> Decorator:
    """`--force`, with what it covers for this verb."""
    return click.option("--force", is_flag=True, help=f"Continue despite a refusal: {covers}.")


def request_options(*, build: bool = False, prompt: bool = False) -> Callable[[Command], Command]:
    """SOURCE, how it is merged, and more; the verb gets `request: Request`.

    Args:
        build: with the options on which files are made.
        prompt: with the options on prompts.
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
    """How much is said, and in which form.

    Attributes:
        as_json: whether results are JSON.
        console: where progress goes.
        is_verbose: whether tracebacks and the libraries' logs are shown.
    """

    as_json: bool
    console: Console
    is_verbose: bool


def output_options() -> Callable[[Command], Command]:
    """`--json`, `--quiet` and `--verbose`; the verb gets `output: Output`."""
    options: tuple[Decorator, ...] = (
        click.option("--json", "as_json", is_flag=True, help="Print results as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Print only results and errors."),
        click.option("-v", "--verbose", is_flag=True,
                     help="Show tracebacks, and the logs of libraries."),
    )  # fmt: skip

    def make(values: Values) -> Output:
        quiet_libraries(is_verbose=values["verbose"])
        return Output(values["as_json"], Console(is_quiet=values["quiet"]), values["verbose"])

    return _grouped("output", make, options)


def conversations_option() -> Callable[[Command], Command]:
    """`--conversations`; the verb gets `conversations`: the user's own, then the built-in ones."""
    option = click.option(
        "--conversations", "own_conversations", type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE", help="Compare the prompts of these too: JSONL as trainers read it.",
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
                     help="Which of the bundle's quants; by default all."),
    )  # fmt: skip

    def make(values: Values) -> Bundle:
        from packager.bundle.bundle import read_bundle

        return read_bundle(values["folder"]).select([quant.name for quant in values["quants"]])

    return _grouped("bundle", make, options)


def chat_options() -> Callable[[Command], Command]:
    """How to chat with a model; the verb gets `chat: ChatOptions`."""
    options: tuple[Decorator, ...] = (
        click.option("--quant", type=QuantType(), metavar="Q",
                     help="Which of the bundle's quants; by default the first."),
        click.option("--system", metavar="TEXT", help="A system prompt."),
        click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True,
                     help="The length in tokens at which an answer is cut."),
        click.option("--threads", type=click.IntRange(min=0, max=512), default=0,
                     help="Threads; by default one per core."),
        click.option("--param", "parameters", multiple=True, type=ParameterType(), metavar="K=V",
                     help="A sampling parameter, such as temperature=0."),
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
    """Add options to a command that gets what `make` makes of their values, as one argument.

    Args:
        into: the argument's name.
        make: from the options' values, by name.
        options: click's decorators.
        also: further options, added elsewhere, that `make` takes if the command has them.
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
