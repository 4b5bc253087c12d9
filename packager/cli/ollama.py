"""`ftpack ollama`: build, register, verify."""

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


@click.command("ollama")
@source_options()
@model_options()
@prompt_options()
@output_options()
@click.option("--host", help="The Ollama server; by default OLLAMA_HOST, else this machine's.")
def command(**options: Any) -> None:
    """Make SOURCE a model that answers in Ollama.

    SOURCE is an adapter's folder, a Trainer's output, a full model, or a Hub id. Several quants
    become tags of one name; `latest` is the first.

    \b
    Example:
      ftpack ollama ./lora --quant q5_k_m --name mymodel
    """
    from packager.cli.report import registration_json, report_bundle, report_plan, report_registered
    from packager.errors import DaemonError
    from packager.pipeline.build import build
    from packager.pipeline.prepare import prepare
    from packager.pipeline.register import model_names, register, require_store_space
    from packager.runtime.ollama import Daemon

    console = console_for(options)
    request = make_request(options)
    if request.name:
        model_names(request.name, request.quants or ("default",))
    daemon = Daemon(options["host"])
    package = prepare(request, console, every_quant=options["dry_run"])
    model_names(package.name, [typed.quant.name for typed in package.chosen])
    if options["dry_run"]:
        report_plan(package.plan, console, as_json=options["as_json"])
        return
    if daemon.is_reachable():
        chosen = [quant for quant in package.plan.quants if quant.is_chosen]
        require_store_space(daemon, [quant.size_bytes for quant in chosen])
    else:
        console.warn(f"No Ollama answers at {daemon.host}; the bundle is built and kept")
    bundle = build(package, console)
    try:
        registered = register(
            bundle.folder, bundle.manifest, bundle.asked_for, package.name, daemon, console
        )
    except DaemonError as error:
        report_bundle(bundle, console, as_json=options["as_json"])
        error.next_step = (
            f"{error.next_step} Then: ftpack register {bundle.folder} --name {package.name}"
        ).strip()
        raise
    report_bundle(
        bundle, console, as_json=options["as_json"], registered=registration_json(registered)
    )
    report_registered(registered, console)
