"""Terminal output: notes and progress bars; on a pipe, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from packager.files import format_bytes
from packager.progress import Task

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_LINE_EVERY_S = 10.0


class Console:
    """A `Progress` on standard error; standard output is for results."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet
        self._rich: RichConsole | None = None

    @property
    def rich(self) -> RichConsole:
        """The terminal behind standard error, opened on first use."""
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=True, highlight=False)
        return self._rich

    def note(self, message: str) -> None:
        """Print one line about a decision or a step."""
        if not self.is_quiet:
            self.rich.print(message, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print one line that the user should see, also with `--quiet`."""
        self.rich.print(f"Warning: {message}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        """A bar with rate and remaining time on a terminal; a line now and then on a pipe."""
        if self.is_quiet:
            yield _Lines(None, label, total, unit)
        elif not self.rich.is_terminal:
            lines = _Lines(self, label, total, unit)
            yield lines
            lines.finish()
        else:
            with self._bar(label, total, unit) as bar:
                yield bar

    @contextmanager
    def _bar(self, label: str, total: int, unit: str) -> Iterator[Task]:
        from rich import progress as rich_progress

        amount: tuple[rich_progress.ProgressColumn, ...] = (
            (rich_progress.DownloadColumn(binary_units=True), rich_progress.TransferSpeedColumn())
            if unit == "bytes"
            else (rich_progress.MofNCompleteColumn(), rich_progress.TextColumn(unit))
        )
        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            *amount,
            rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
        )
        with rich_progress.Progress(*columns, console=self.rich) as display:
            task_id = display.add_task(label, total=total)

            class Bar:
                def advance(self, amount: int) -> None:
                    display.advance(task_id, amount)

            yield Bar()


class _Lines:
    """A task reported in lines, at most one every ten seconds."""

    def __init__(self, console: Console | None, label: str, total: int, unit: str) -> None:
        self._console = console
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._started_s = self._reported_s = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        now_s = time.monotonic()
        if now_s - self._reported_s >= _LINE_EVERY_S:
            self._reported_s = now_s
            self._report(f"{100 * self._done // max(1, self._total)} %")

    def finish(self) -> None:
        self._report("done")

    def _report(self, state: str) -> None:
        if self._console is None:
            return
        elapsed_s = max(time.monotonic() - self._started_s, 1e-6)
        rate = self._done / elapsed_s
        amount = (
            f"{format_bytes(self._done)}, {format_bytes(rate)}/s"
            if self._unit == "bytes"
            else f"{self._done} {self._unit}, {rate:.1f}/s"
        )
        self._console.note(f"{self._label}: {state} ({amount}, {elapsed_s:.1f} s)")


def quiet_libraries(*, is_verbose: bool) -> None:
    """Keep the log lines and warnings of transformers and others off the screen."""
    import logging
    import os
    import warnings

    if is_verbose:
        logging.basicConfig(level=logging.INFO)
        return
    warnings.simplefilter("ignore")
    # It warns that a kernel for inference is missing; nothing here infers.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def result(text: str) -> None:
    """Print a result, for people and for pipes: one line on standard output."""
    sys.stdout.write(f"{text}\n")
