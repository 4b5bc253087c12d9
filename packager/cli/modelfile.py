"""`ftpack modelfile`: the Modelfile of a source or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.options import (
    console_for,
    make_request,
    output_options,
    prompt_options,
    source_options,
)


@click.command("modelfile")
@source_options()
@prompt_options()
@click.option("--from", "from_", metavar="GGUF", default=["./model.gguf"], show_default=True,
              multiple=True, help="What FROM names, for a SOURCE that is no bundle; a second one "
              "for an mmproj.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Write it there; by default it is printed.")  # fmt: skip
@output_options()
def command(**options: Any) -> None:
    """Print the Modelfile that belongs to SOURCE, or to a finished bundle.

    \b
    Example:
      ftpack modelfile ./lora --from ./lora-Q5_K_M.gguf
    """
    import json

    from packager.cli.console import result
    from packager.files import write_text
    from packager.verbs.modelfile import modelfile_of

    console = console_for(options)
    path = options.pop("out")
    text, reason = modelfile_of(make_request(options), options["from_"], console)
    if path is not None:
        write_text(path, text)
        result(str(path))
    elif options["as_json"]:
        result(json.dumps({"modelfile": text, "reason": reason}, indent=2))
    else:
        result(text.rstrip("\n"))
