"""`ftpack inspect`: what a folder is, and what it needs; answered from headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from packager.cli.options import Output, output_options

if TYPE_CHECKING:
    from packager.verbs.inspect import InspectedAdapter, InspectedCheckpoint, Inspection


@click.command("inspect")
@click.argument("source")
@click.option("--checkpoint", metavar="N|best|last",
              help="The training checkpoint to use; by default the run's final save.")  # fmt: skip
@click.option("--revision", metavar="REV", help="The branch, tag or commit of SOURCE's id.")
@output_options()
def command(source: str, checkpoint: str | None, revision: str | None, output: Output) -> None:
    """Show what SOURCE is, which base it needs, and its training checkpoints.

    \b
    Example:
      ftpack inspect ./outputs
    """
    import json

    from packager.cli.console import result
    from packager.source.source_options import SourceOptions
    from packager.verbs.inspect import inspect

    options = SourceOptions(source, checkpoint=checkpoint, revision=revision)
    inspection = inspect(options, output.console)
    if output.as_json:
        result(json.dumps(inspection.to_json(), indent=2))
        return
    for line in _lines(inspection):
        result(line)


def _lines(inspection: Inspection) -> list[str]:
    lines = [f"source: {inspection.source}"]
    if training := inspection.training:
        lines += _known({
            "trained with": f"{training.trainer} ({training.known_by})",
            "trained on": training.base,
            "training template": training.template_name,
            "training length": training.length,
            "training, not readable": training.problem,
        })  # fmt: skip
    if inspection.adapter:
        lines += _adapter_lines(inspection.adapter)
    if model := inspection.model:
        lines += [f"architecture: {', '.join(model.architectures)}", f"weights: {model.tensors}"]
    lines += _known({"chat template": inspection.chat_template})
    lines += _listed("problems of the chat template", inspection.chat_template_problems)
    lines += _listed("adapters in folders of their own", inspection.named_adapters)
    lines += _listed("training checkpoints", map(_checkpoint_line, inspection.checkpoints))
    lines += _known({"what happens": inspection.what_happens})
    return [*lines, f"next: {inspection.next_step}"]


def _adapter_lines(adapter: InspectedAdapter) -> list[str]:
    return _known({
        "method": adapter.method,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": adapter.targets,
        "adapter tensors": adapter.tensors,
        "base": adapter.base or "not recorded: name it with --base",
        "base found": adapter.base_location,
    })  # fmt: skip


def _checkpoint_line(checkpoint: InspectedCheckpoint) -> str:
    parts = [f"step {checkpoint.step}"]
    parts += [] if checkpoint.loss is None else [f"loss {checkpoint.loss}"]
    parts += [] if checkpoint.eval_loss is None else [f"eval loss {checkpoint.eval_loss}"]
    return ", ".join([*parts, *(["best"] if checkpoint.is_best else [])])


def _known(values: Mapping[str, object]) -> list[str]:
    return [f"{key}: {value}" for key, value in values.items() if value is not None]


def _listed(title: str, items: Iterable[str]) -> list[str]:
    lines = [f"  {item}" for item in items]
    return [f"{title}:", *lines] if lines else []
