"""`ftpack merge`: the merged model in 16 or in 4 bits, or the adapter for publishing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli.options import Output, force_option, output_options, request_options

if TYPE_CHECKING:
    from packager.package.request import Request
    from packager.save.staged_folder import SavedFolder
    from packager.verbs.merge import Form


@click.command("merge")
@request_options()
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="The folder to write.")  # fmt: skip
@click.option(
    "--save",
    type=click.Choice(["merged_16bit", "merged_4bit", "adapter"]),
    default="merged_16bit",
    show_default=True,
    help="What to write: the merged model in the base's own 16 bits, or in 4 bits by bitsandbytes "
    "(nf4); or the adapter alone, cleaned for publishing.",
)
@force_option("a model or adapter in --out, missing weights")
@output_options()
def command(request: Request, folder: Path, save: str, output: Output) -> None:
    """Merge SOURCE into its base, tensor by tensor, as a folder that transformers loads.

    \b
    Example:
      ftpack merge ./lora --out ./merged
    """
    if save == "adapter":
        _save_adapter(request, folder, output)
    else:
        _merge(request, folder, "merged_4bit" if save == "merged_4bit" else "merged_16bit", output)


def _merge(request: Request, folder: Path, form: Form, output: Output) -> None:
    from packager.verbs.merge import merge

    merged = merge(request, folder, output.console, form=form)
    choice = merged.base_choice
    _report(merged.saved, output, {} if choice is None else {"base_choice": choice.to_json()})
    if not output.as_json:
        packaging = f"package it with ftpack ollama {folder} --name NAME, or "
        can_be_packaged = form == "merged_16bit"
        output.console.note(
            f"Next: {packaging if can_be_packaged else ''}load it with transformers"
        )


def _save_adapter(request: Request, folder: Path, output: Output) -> None:
    from packager.verbs.merge import save_adapter

    _report(save_adapter(request, folder, output.console), output, {})
    if not output.as_json:
        output.console.note(
            f"Next: read {folder / 'README.md'}, then hf upload OWNER/NAME {folder}"
        )


def _report(saved: SavedFolder, output: Output, more: dict[str, object]) -> None:
    import json

    from packager.cli.console import result
    from packager.files import format_bytes

    if output.as_json:
        files = [str(path) for path in saved.files]
        result(json.dumps({"folder": str(saved.folder), "files": files, **more}, indent=2))
        return
    result(str(saved.folder))
    output.console.note(f"{len(saved.files)} files, {format_bytes(saved.size_bytes)}")
