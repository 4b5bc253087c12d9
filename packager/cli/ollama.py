"""`ftpack ollama`: build, register, verify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from packager.cli.options import (
    console_for,
    conversations_option,
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
@conversations_option()
@output_options()
@click.option("--host", help="The Ollama server; by default OLLAMA_HOST, else this machine's.")
def command(conversations: Path | None, **options: Any) -> None:
    """Make SOURCE a model that answers in Ollama.

    SOURCE is an adapter's folder, a Trainer's output, a full model, a Hub id, or
    modelscope://ORG/NAME. Several quants become tags of one name; `latest` is the first.

    \b
    Example:
      ftpack ollama ./lora --quant q5_k_m --name mymodel
    """
    from packager.cli.report import (
        registration_json,
        report_bundle,
        report_plan,
        report_proof,
        report_registered,
    )
    from packager.errors import DaemonError
    from packager.package.prepare import prepare
    from packager.runtime.daemon import Daemon
    from packager.verbs.build import build
    from packager.verbs.register import model_names, register, require_store_space
    from packager.verify.renderers import conversations_with, prove_built, require_proved

    console = console_for(options)
    request = make_request(options)
    if request.name:
        model_names(request.name, request.quants or ("default",))
    tried = conversations_with(conversations)
    daemon = Daemon(options["host"])
    is_there = daemon.is_reachable()
    if is_there and request.ollama_version is None:
        request = replace(request, ollama_version=daemon.version())
    package = prepare(request, console, every_quant=options["dry_run"])
    model_names(package.name, [typed.quant.name for typed in package.chosen])
    if options["dry_run"]:
        report_plan(package.plan, console, as_json=options["as_json"])
        return
    if is_there:
        sizes = [quant.size_bytes for quant in package.plan.quants if quant.is_chosen]
        if package.plan.projector:
            sizes.append(package.plan.projector.size_bytes)
        require_store_space(daemon, sizes)
    else:
        console.warn(f"No Ollama answers at {daemon.host}; the bundle is built and kept")
    bundle = build(package, console)
    for proof in prove_built(package, bundle.folder / bundle.asked_for[0].name, tried):
        report_proof(proof, console)
        if not request.force:
            require_proved(
                proof,
                f"{bundle.folder} is built, but not registered",
                f"See `ftpack prompt {request.source}`; --force registers it all the same.",
            )
    try:
        registered = register(
            bundle.folder, bundle.manifest, bundle.asked_for, package.name, daemon, console,
            conversations=tried, force=request.force,
        )  # fmt: skip
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
