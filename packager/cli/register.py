"""`ftpack register`: what `ftpack ollama` does after building."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli.option_types import QuantType
from packager.cli.options import (
    Output,
    conversations_option,
    force_option,
    host_option,
    name_option,
    output_options,
)

if TYPE_CHECKING:
    from packager.gguf.quants import Quant
    from packager.prompt.conversation import Conversation


@click.command("register")
@click.argument("bundle", type=click.Path(path_type=Path))
@name_option
@click.option("--quant", "quants", multiple=True, type=QuantType(), metavar="Q",
              help="Which of the bundle's quants; by default all.")  # fmt: skip
@host_option
@force_option("a prompt that differs")
@conversations_option()
@output_options()
def command(
    bundle: Path,
    name: str | None,
    quants: tuple[Quant, ...],
    host: str | None,
    force: bool,
    conversations: tuple[Conversation, ...],
    output: Output,
) -> None:
    """Register the finished BUNDLE with Ollama, read it back, and let it answer.

    \b
    Example:
      ftpack register ./mymodel-gguf --name mymodel
    """
