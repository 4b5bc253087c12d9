"""`ftpack doctor`: what is installed, found and reachable; and how to fix what is not."""

from __future__ import annotations

import click

from packager.cli.options import Output, host_option, output_options


@click.command("doctor")
@click.option("--install-toolchain", is_flag=True,
              help="Fetch llama.cpp's converter (with pip) into ftpack's cache.")  # fmt: skip
@host_option
@output_options()
def command(install_toolchain: bool, host: str | None, output: Output) -> None:
    """Show what is installed, found and reachable, and how to fix the rest.

    \b
    Example:
      ftpack doctor
    """
    import json

    from packager.cli.console import result
    from packager.verbs.doctor import doctor

    if install_toolchain:
        from packager.gguf.toolchain import install_toolchain as install

        result(str(install(output.console).folder))
        return
    findings = doctor(host)
    if output.as_json:
        values = [
            {"what": item.what, "ok": item.is_ok, "state": item.state, "fix": item.fix}
            for item in findings
        ]
        result(json.dumps(values, indent=2))
    else:
        for item in findings:
            result(f"{'ok  ' if item.is_ok else 'MISS'} {item.what}: {item.state}")
            if item.fix:
                result(f"       {item.fix}")
    if any(item.is_needed and not item.is_ok for item in findings):
        raise click.exceptions.Exit(1)
