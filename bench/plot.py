"""Wall times as horizontal bars, in an SVG that is readable on light and dark backgrounds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bench.figures import Comparison
from bench.routes import CONVERT, MERGE

# Mid-grey text and lines on a transparent background are visible on white and on near black.
_GREY = "#7d8590"
_MERGE, _CONVERT, _QUANTIZE, _FTPACK = "#8a939e", "#a3abb5", "#c08a3e", "#2f9e6e"
_BAR = 0.34
_STYLE: Any = {
    "svg.hashsalt": "ftpack",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}


def can_plot() -> bool:
    """Returns whether matplotlib is installed; ftpack itself does not need it."""
    return importlib.util.find_spec("matplotlib") is not None


def write_plot(path: Path, comparisons: list[Comparison], title: str) -> None:
    """Draws two bars for each comparison: the usual route's steps, and ftpack.

    The bytes depend only on the figures and on matplotlib's version.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 1.1 + 0.75 * len(comparisons)), layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        for place, row in enumerate(comparisons):
            _draw(axes, place, row)
        axes.set_yticks(range(len(comparisons)), [row.name for row in comparisons])
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.margins(x=0.14)  # room for the figures to the right of the bars
        axes.set_xlim(left=0)
        axes.set_xlabel("wall time, s")
        axes.set_title(title, loc="left", fontsize=10)
        axes.tick_params(length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_GREY)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(
            unique.values(), unique.keys(), loc="outside lower center",
            ncols=len(unique), frameon=False,
        )  # fmt: skip
        figure.savefig(
            path, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )


def _draw(axes: Any, place: int, row: Comparison) -> None:
    above, below = place - _BAR / 2, place + _BAR / 2
    ours = row.ftpack["wall_s"].median
    ratio = row.ratio("wall_s")
    text = f"{ours:.1f} s" if ratio is None else f"{ours:.1f} s ({ratio:.1f} x)"
    if row.usual is not None:
        end = 0.0
        for label, colour, seconds in _usual_parts(row):
            axes.barh(above, seconds, _BAR, left=end, color=colour, label=label)
            end += seconds
        _write(axes, end, above, f"{row.usual['wall_s'].median:.1f} s")
    axes.barh(below, ours, _BAR, color=_FTPACK, label="ftpack")
    _write(axes, ours, below, text)


def _usual_parts(row: Comparison) -> list[tuple[str, str, float]]:
    median = {name: step["wall_s"].median for name, step in row.steps.items()}
    quantize = sum(median.values()) - median[MERGE] - median[CONVERT]
    return [
        ("usual route: merge", _MERGE, median[MERGE]),
        ("convert", _CONVERT, median[CONVERT]),
        ("quantize", _QUANTIZE, quantize),
    ]


def _write(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
