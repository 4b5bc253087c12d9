"""`ftpack merge`: the merged checkpoint in 16 or in 4 bits, or the adapter for publishing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.options import console_for, make_request, output_options, source_options


@click.command("merge")
@source_options()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="The folder to write.")  # fmt: skip
@click.option(
    "--save",
    type=click.Choice(["merged_16bit", "merged_4bit", "adapter"]),
    default="merged_16bit",
    show_default=True,
    help="16 bits, as the base has them; the 4 of bitsandbytes (nf4); or the adapter alone, "
    "cleaned for publishing.",
)
@click.option("--force", is_flag=True, help="Overwrite a model in --out.")
@output_options()
def command(**options: Any) -> None:
    """Merge SOURCE into its base, tensor by tensor, as a folder that transformers loads.

    \b
    Example:
      ftpack merge ./lora --out ./merged
    """
    import json

    from packager.cli.console import result
    from packager.files import format_bytes
    from packager.save.clean_adapter import publish_adapter
    from packager.verbs.merge import merge

    console = console_for(options)
    request, folder = make_request(options), options["out"]
    if options["save"] == "adapter":
        merged = publish_adapter(request, folder, console)
    else:
        merged = merge(request, folder, console, options["save"])
    if options["as_json"]:
        files = [str(path) for path in merged.files]
        value: dict[str, object] = {"folder": str(merged.folder), "files": files}
        if merged.nearness is not None:
            value["nearness"] = merged.nearness.to_json()
        result(json.dumps(value, indent=2))
        return
    result(str(merged.folder))
    console.note(f"{len(merged.files)} files, {format_bytes(merged.size_bytes)}")
    if options["save"] == "adapter":
        console.note(f"Next: read {merged.folder / 'README.md'}, then hf upload NAME {folder}")
        return
    ollama = f"ftpack ollama {merged.folder} --name NAME, or "
    is_packable = options["save"] == "merged_16bit"
    console.note(f"Next: {ollama if is_packable else ''}load it with transformers")
