"""The bench's figures as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.figures import Comparison, Spreads, spreads
from bench.kernels import COLUMNS, WEIGHTS, KernelTime
from bench.machine import Machine
from bench.result import Result, Setting
from bench.routes import FTPACK_MERGE
from packager.files import format_bytes

_NOTES = """\
{rounds}. Where a cell has two figures, the first is the usual route's. \
Peak memory is the sum over all processes at one moment; "not mapped" is the same without mapped \
files, which the system can reclaim. "Read" counts `read` calls, including the programs' own \
files, but not reads through mappings. "From disk" counts calls and mappings: {disk}."""
_COLD = "everything, because each step's inputs were dropped from the page cache beforehand"
_WARM = "what the page cache evicted, because each step's inputs were read into it beforehand"

_STEP_HEAD = ("wall", "CPU", "peak memory", "not mapped", "written")


def format_result(result: Result) -> str:
    """Returns the table of both routes, the table of the usual route's steps, and the setting."""
    comparisons = result.comparisons
    disk = _COLD if result.setting.is_cold else _WARM
    parts = [
        _comparison_table(comparisons),
        _NOTES.format(rounds=_rounds(len(result.measured.rounds)), disk=disk),
        _steps_table(comparisons[-1]),
        _merge_line(result),
        _intermediate(result),
        _setting_line(result.setting),
        f"Machine: {result.machine}.",
        *_differing_lines(result.measured.differing_tensors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_kernel_times(machine: Machine, times: Sequence[KernelTime]) -> str:
    """Returns the table of ns per weight, without and with importance weights."""
    head = ["", "kernel", "ggml", "ratio", "kernel, with importance", "ggml", "ratio"]
    by_type: dict[str, list[str]] = {}
    for time in times:
        by_type.setdefault(time.type_name, []).extend(_kernel_cells(time))
    notes = (
        f"Nanoseconds per weight on one thread, the fastest of several runs in turn, for {WEIGHTS} "
        f"normally distributed weights in rows of {COLUMNS}. ggml quantizes types without a kernel."
    )
    rows = [[name, *cells] for name, cells in by_type.items()]
    parts = [_table(head, rows), notes, f"Machine: {machine}."]
    for time in times:
        if not time.has_same_bytes:
            kind = "with" if time.has_importance else "without"
            parts.append(f"{time.type_name} {kind} importance: the kernel's bytes are NOT ggml's.")
    return "\n\n".join(parts) + "\n"


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    head = [
        "", "usual route", "ftpack", "ratio", "CPU time", "ratio", "peak memory", "ratio",
        "not mapped", "read", "from disk", "written",
    ]  # fmt: skip
    return _table(head, [_comparison_cells(row) for row in comparisons])


def _comparison_cells(row: Comparison) -> list[str]:
    def pair(figure: str, write: Callable[[float], str]) -> str:
        ours = write(row.ftpack[figure].median)
        return f"{write(row.usual[figure].median)} / {ours}" if row.usual else ours

    return [
        row.name,
        _seconds(row.usual["wall_s"].median) if row.usual else "not run",
        _seconds(row.ftpack["wall_s"].median),
        _ratio(row.ratio("wall_s")),
        pair("cpu_s", _seconds),
        _ratio(row.ratio("cpu_s")),
        pair("peak_tree_bytes", format_bytes),
        _ratio(row.ratio("peak_tree_bytes")),
        pair("peak_own_bytes", format_bytes),
        pair("read_bytes", format_bytes),
        pair("disk_read_bytes", format_bytes),
        pair("written_bytes", format_bytes),
    ]


def _steps_table(together: Comparison) -> str:
    if not together.steps:
        return ""
    head = ["the usual route's steps", *_STEP_HEAD]
    return _table(head, [[name, *_step_cells(step)] for name, step in together.steps.items()])


def _step_cells(step: Spreads) -> list[str]:
    return [
        _seconds(step["wall_s"].median),
        _seconds(step["cpu_s"].median),
        format_bytes(step["peak_tree_bytes"].median),
        format_bytes(step["peak_own_bytes"].median),
        format_bytes(step["written_bytes"].median),
    ]


def _rounds(count: int) -> str:
    return "One round" if count == 1 else f"Medians of {count} rounds, the routes in turn"


def _merge_line(result: Result) -> str:
    """Returns the cost of `ftpack merge`, if it was run."""
    runs = [round_.merge for round_ in result.measured.rounds if round_.merge]
    if not runs:
        return ""
    cells = _step_cells(spreads([run.steps[FTPACK_MERGE] for run in runs]))
    return f"`ftpack merge`: {', '.join(map(' '.join, zip(_STEP_HEAD, cells, strict=True)))}."


def _intermediate(result: Result) -> str:
    first = result.measured.rounds[0]
    text = f"Intermediate files: ftpack {format_bytes(first.ftpack.intermediate_bytes)}"
    if first.usual:
        text += f", usual route {format_bytes(first.usual.intermediate_bytes)}"
    return f"{text}."


def _setting_line(setting: Setting) -> str:
    return (
        f"Measured: {setting.parameters / 1e9:.2f} B weights ({setting.shape}, random), "
        f"{setting.adapter}; {', '.join(setting.quants)}; {setting.threads} threads; "
        f"ftpack quantized with {_quantizer(setting)}."
    )


def _quantizer(setting: Setting) -> str:
    if setting.quantizer != "kernels":
        return f"{setting.quantizer} for every type"
    count = setting.compiled_kernels
    if not count:
        return "kernels that were compiled already"
    return (
        f"kernels; compiling {count} of them beforehand took {_seconds(setting.compiling_s)}, "
        "once on this machine"
    )


def _differing_lines(differing: dict[str, list[str]]) -> list[str]:
    return [
        f"{quant}: {len(names)} tensors DIFFER, such as {', '.join(names[:3])}."
        if names
        else f"{quant}: every tensor is the same."
        for quant, names in differing.items()
    ]


def _kernel_cells(time: KernelTime) -> list[str]:
    kernel = "-" if time.kernel_ns is None else f"{time.kernel_ns:.1f}"
    return [kernel, f"{time.ggml_ns:.1f}", _ratio(time.ratio)]


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} x"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are also aligned as plain text."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line)]
        for line in lines
    ]
    padded.insert(1, [cell.ljust(max(1, width)) for cell, width in zip(rule, widths, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
