"""`ftpack modelfile`: the Modelfile of a source or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli.options import Output, output_options, request_options

if TYPE_CHECKING:
    from packager.package.request import Request


@click.command("modelfile")
@request_options(prompt=True)
@click.option("--from", "ggufs", metavar="GGUF", default=["./model.gguf"], show_default=True,
              multiple=True, help="The GGUF that FROM names, for a SOURCE that is not a bundle; "
              "repeat it for an mmproj.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="The file to write; by default the Modelfile is printed.")  # fmt: skip
@output_options()
def command(request: Request, ggufs: tuple[str, ...], out: Path | None, output: Output) -> None:
    """Print the Modelfile of SOURCE, which is what `ftpack ollama` takes, or a bundle.

    \b
    Example:
      ftpack modelfile ./lora --from ./lora-Q5_K_M.gguf
    """
    import json

    from packager.cli.console import result
    from packager.files import write_text
    from packager.verbs.modelfile import modelfile

    written = modelfile(request, ggufs, output.console)
    if out is not None:
        write_text(out, written.text)
        result(str(out))
    elif output.as_json:
        result(json.dumps({"modelfile": written.text, "reason": written.reason}, indent=2))
    else:
        result(written.text.rstrip("\n"))
