"""The `ftpack` command: its verbs, loaded when called, and its one error boundary."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from typing import NoReturn

import click

from packager import __version__
from packager.allocator import keep_freed_memory
from packager.errors import FtpackError, InputRefusedError

# The verb, in the order of `--help`, and its line there: help imports none of them.
_VERBS = {
    "ollama": "Build, register with Ollama, and verify.",
    "gguf": "Build the bundle: GGUFs, Modelfile, manifest.",
    "merge": "Write the merged 16-bit checkpoint.",
    "modelfile": "Print the Modelfile of a source or a bundle.",
    "register": "Register a finished bundle with Ollama.",
    "prompt": "Prove that the prompt is that of training.",
    "inspect": "Tell what a folder is, and what it needs.",
    "run": "Chat with a bundle or GGUF, without Ollama.",
    "doctor": "Tell what is installed, found, reachable.",
    "completion": "Print the completion script for a shell.",
}
_INTERRUPTED = 130


class _Verbs(click.Group):
    """A group whose commands live in `packager.cli.VERB`, as a function named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(f"packager.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ftpack")
def cli() -> None:
    """From a fine-tune to a model that answers in Ollama.

    \b
    Example:
      ftpack ollama ./lora --quant q5_k_m --name mymodel
    """


def run() -> NoReturn:
    """Run the command line, and end the process as it is.

    Taking down a vocabulary's million objects, one by one, would take two seconds.
    """
    code: int | str | None = 1
    try:
        main()
    except SystemExit as done:
        code = done.code
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def main() -> None:
    """Run the command line; every error ends here, as a message and an exit code."""
    # OpenMP threads that wait shall sleep: spinning, they take the cores from the quantizers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    is_verbose = any(arg in ("-v", "--verbose") for arg in sys.argv[1:])
    try:
        code = cli.main(prog_name="ftpack", standalone_mode=False)
    except click.exceptions.Abort:
        _say("Interrupted. What was finished is kept; the same command goes on from there.")
        code = _INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except FtpackError as error:
        if is_verbose:
            traceback.print_exc()
        _say(f"Error: {error.message}")
        if error.next_step:
            _say(f"Next: {error.next_step}")
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    # What the system refuses is a file's or a disk's matter, which only the user can mend.
    except OSError as error:
        if is_verbose:
            traceback.print_exc()
        _say(f"Error: {error}")
        _say("Next: Check that these files can be read and written, and that there is room.")
        code = InputRefusedError.exit_code
    except Exception as error:
        if is_verbose:
            traceback.print_exc()
        _say(f"Error: {type(error).__name__}: {error}")
        _say("Next: This is a fault of ftpack. Run again with -v and report what it prints.")
        code = 1
    sys.exit(code or 0)


def _say(message: str) -> None:
    click.echo(message, err=True)
