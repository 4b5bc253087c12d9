"""The `ftpack` command: its verbs, loaded when called, and its one error boundary."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from typing import NoReturn

import click

from packager import __version__
from packager.allocator import keep_freed_memory
from packager.errors import FtpackError, InputRefusedError
from packager.files import cache_folder

# The verb, in the order of `--help`, and its line there: help imports none of them.
_VERBS = {
    "ollama": "Build, register with Ollama, and verify.",
    "gguf": "Build the bundle: GGUFs, Modelfile, manifest.",
    "merge": "Write the merged model, or the cleaned adapter.",
    "modelfile": "Print the Modelfile of a source or a bundle.",
    "register": "Register a finished bundle with Ollama.",
    "prompt": "Compare the prompts with the training prompts.",
    "inspect": "Show what a source is, and what it needs.",
    "run": "Chat with a bundle or GGUF, without Ollama.",
    "doctor": "Show what is installed and reachable.",
    "completion": "Print the completion script for a shell.",
}
_INTERRUPTED = 130
_TERMINATED = 143


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
    """Run the command line, and end the process at once.

    When `main` returns, every file is closed and every temporary folder is removed. The interpreter
    would only free the million objects of the libraries, which takes 1.6 seconds.
    """
    code: int | str | None = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def main() -> None:
    """Run the command line: every error ends here, as a message and an exit code."""
    # OpenMP threads should sleep while they wait: spinning, they take cores from the quantizers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch would otherwise leave a folder of its own among the temporary ones.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
    # A run that is asked to end removes its temporary folder, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    is_verbose = any(arg in ("-v", "--verbose") for arg in sys.argv[1:])
    try:
        code = cli.main(prog_name="ftpack", standalone_mode=False) or 0
    except Exception as error:
        if is_verbose and not isinstance(error, click.exceptions.Abort | click.ClickException):
            traceback.print_exc()
        code = _report(error)
    sys.exit(code)


def _report(error: Exception) -> int:
    """Print what happened and what to do next; gives the exit code."""
    match error:
        case click.exceptions.Abort():
            _say("Interrupted. Finished files are kept; the same command continues from there.")
            return _INTERRUPTED
        case click.ClickException():
            error.show()
            return error.exit_code
        case FtpackError():
            _say(f"Error: {error.message}")
            if error.next_step:
                _say(f"Next: {error.next_step}")
            return error.exit_code
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        # A file or a disk has a problem, which only the user can fix.
        case OSError():
            _say(f"Error: {error}")
            _say(
                "Next: Check that these files can be read and written, and that the disk has room."
            )
            return InputRefusedError.exit_code
    _say(f"Error: {type(error).__name__}: {error}")
    _say("Next: This is a bug in ftpack. Run it again with -v and report what it prints.")
    return 1


def _terminate(*_: object) -> None:
    sys.exit(_TERMINATED)


def _say(message: str) -> None:
    click.echo(message, err=True)
