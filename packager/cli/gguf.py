"""`ftpack gguf`: the bundle, without a daemon."""

from __future__ import annotations

from typing import Any

import click

from packager.cli.options import (
    console_for,
    make_request,
    model_options,
    output_options,
    prompt_options,
    source_options,
)


@click.command("gguf")
@source_options()
@model_options()
@prompt_options()
@output_options()
def command(**options: Any) -> None:
    """Build the bundle of SOURCE: GGUFs, Modelfile, manifest, checksums.

    SOURCE is an adapter's folder, a Trainer's output, a full model, a Hub id, or
    modelscope://ORG/NAME.

    \b
    Example:
      ftpack gguf ./lora --quant q4_k_m --quant q8_0 --out ./mymodel-gguf
    """
    from packager.cli.report import report_bundle, report_plan
    from packager.package.prepare import prepare
    from packager.runtime.daemon import validate_name
    from packager.verbs.build import build

    if options["name"]:
        validate_name(options["name"])
    console = console_for(options)
    request = make_request(options)
    package = prepare(request, console, every_quant=options["dry_run"])
    if options["dry_run"]:
        report_plan(package.plan, console, as_json=options["as_json"])
        return
    bundle = build(package, console)
    report_bundle(bundle, console, as_json=options["as_json"])
    if not options["as_json"]:
        console.note(
            f'Next: ftpack run {bundle.folder} "Hello", or '
            f"ftpack register {bundle.folder} --name {package.name}"
        )
