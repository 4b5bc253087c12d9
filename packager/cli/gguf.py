"""`ftpack gguf`: build a bundle, without Ollama."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import (
    Output,
    dry_run_option,
    force_option,
    name_option,
    output_options,
    request_options,
)

if TYPE_CHECKING:
    from packager.package.request import Request


@click.command("gguf")
@request_options(build=True, prompt=True)
@name_option("that of SOURCE's folder")
@dry_run_option
@force_option("another model's files in --out, an incomplete model")
@output_options()
def command(request: Request, dry_run: bool, output: Output) -> None:
    """Build the bundle of SOURCE: GGUFs, Modelfile, manifest, checksums.

    SOURCE is an adapter's folder, a training output, a full model, a Hub id, or
    modelscope://ORG/NAME.

    \b
    Example:
      ftpack gguf ./lora --quant q4_k_m --quant q8_0 --out ./mymodel-gguf
    """
    from packager.cli.report import report_bundle, report_plan
    from packager.verbs.gguf import gguf, plan

    if dry_run:
        report_plan(plan(request, output.console), output)
        return
    built = gguf(request, output.console)
    report_bundle(built, output)
    if not output.as_json:
        bundle = built.bundle
        output.console.note(
            f'Next: ftpack run {bundle.folder} "Hello", or '
            f"ftpack register {bundle.folder} --name {bundle.manifest.name}"
        )
