"""Pictures of conversion error, from stored values alone: error by layer, accuracy over time,
firing rates and potentials left.

Each function writes one file, PNG, PDF or SVG by its name, and leaves no state: figures have a
canvas of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from ..errors import Fault, SpecError
from ..system.storage import atomic
from .row_groups import kinds_of, subject
from .rows import Row

_ACROSS, _ACROSS_PRINTED = 4, 2  # panels in a row
PRINTED = 0.8
"""How much smaller letters and lines are in print than on a screen."""
FORMS = ("png", "pdf", "svg")
PANELS = 8
"""Kinds of rows that panels can show; more are one map."""
COLUMN, PAGE = 3.35, 7.0
"""Widths of a printed column and of two, in inches."""


# ------------------------------------------------------------------------------ accuracy over time


def accuracy_over_time(rows: Sequence[Row], path: str | Path) -> None:
    """Draw accuracy and agreement against T, a line for each n, ANN and QANN as lines across.

    Rows that differ in more than n and T get panels for each kind, headed by what differs; where
    there are more kinds than panels can show, `accuracy_map` shows them. A PDF or SVG is as wide as
    a printed column, or as a page where there are several kinds.

    Raises:
        SpecError: no rows.
        OutputError: the file cannot be written.
    """
    kinds = kinds_of(rows)
    if not kinds:
        raise SpecError("there are no rows to draw: give the rows of a results.json")
    if len(kinds) > PANELS:
        accuracy_map(rows, path)
        return
    printed = is_for_print(path)
    across = min(_ACROSS_PRINTED if printed else _ACROSS, len(kinds))
    down = -(-len(kinds) // across)
    size = (2.0 + max(4.0, 2.9 * across), 0.8 + 4.9 * down)
    if printed:
        size = (PAGE if across > 1 else COLUMN, 1.1 + 3.2 * down)
    figure, panels = make_figure(size, (2 * down, across), sharey="row")
    numbers = sorted({row.n for row in rows})
    shades = colormaps["viridis"]
    colours = {n: shades(0.9 * k / max(1, len(numbers) - 1)) for k, n in enumerate(numbers)}
    times = sorted({row.T for row in rows})
    for k in range(across * down):
        above, below = (
            panels[(2 * (k // across) + lower) * across + k % across] for lower in (0, 1)
        )
        if k >= len(kinds):
            above.set_axis_off()
            below.set_axis_off()
            continue
        _panel(above, below, list(kinds.items())[k], colours)
        for axes in (above, below):
            axes.set_xscale("log", base=2)
            axes.set_xticks(times, [str(T) for T in times], minor=False)
        if k % across == 0:
            above.set_ylabel("accuracy, %", fontsize=9)
            below.set_ylabel("same class as the QANN,\n% of images", fontsize=9)
    lines = [
        Line2D([], [], color=colours[n], marker="o", ms=4, label=f"n = {n or '∞'}") for n in numbers
    ]
    lines += [Line2D([], [], **_LINES[name], label=name) for name in _LINES]
    words = subject(rows)
    if printed:
        figure.legend(handles=lines, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
        figure.suptitle(fill(words, 100 if across > 1 else 48), fontsize=11)
        shrink_(figure, PRINTED)
    else:
        figure.legend(handles=lines, loc="outside right center", fontsize=9, frameon=False)
        figure.suptitle(words, fontsize=11)
    write(figure, path)


def is_for_print(path: str | Path) -> bool:
    """Whether a file is for print: a PDF or SVG."""
    return Path(path).suffix in (".pdf", ".svg")


def draw_forms(draw: Callable[[Path], None], path: str | Path) -> None:
    """Draw a picture in each of `FORMS`, beside a PNG file of that name.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> draw_forms(lambda file: write(make_figure((2, 2), (1, 1))[0], file), folder / "a.png")
        >>> sorted(file.name for file in folder.iterdir())
        ['a.pdf', 'a.png', 'a.svg']
    """
    for form in FORMS:
        draw(Path(path).with_suffix(f".{form}"))


def shrink_(figure: Figure, share: float) -> None:
    """Make all letters, lines and dots of a figure smaller."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(float(text.get_fontsize()) * share)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for label in axis.get_ticklabels()[:1]:
                axis.set_tick_params(labelsize=label.get_fontsize())  # of ticks to come too
    for line in figure.findobj(Line2D):
        assert isinstance(line, Line2D)
        line.set_linewidth(line.get_linewidth() * share)
        line.set_markersize(line.get_markersize() * share)


def accuracy_map(rows: Sequence[Row], path: str | Path) -> None:
    """Draw accuracies as a map, as wide as a page: a line for each kind of rows and n, a column for
    each T; the darker, the nearer to the quantized network. ``=``: every activation is equal.

    Raises:
        SpecError: no rows.
        OutputError: the file cannot be written.
    """
    kinds = kinds_of(rows)
    if not kinds:
        raise SpecError("there are no rows to draw: give the rows of a results.json")
    times = sorted({row.T for row in rows})
    lines: list[tuple[str, dict[int, Row]]] = []
    starts = []
    for words, alike in kinds.items():
        starts.append(len(lines))
        for n in sorted({row.n for row in alike}):
            head = words.replace("\n", ", ") if starts[-1] == len(lines) else ""
            at = {row.T: row for row in alike if row.n == n}
            lines.append((f"{head}{', ' if head else ''}n = {n or '∞'}", at))
    figure, (axes,) = make_figure((PAGE, 1.1 + 0.165 * len(lines)), (1, 1))
    image = axes.imshow(
        [[_below(at.get(T)) for T in times] for _, at in lines],
        cmap="Blues_r",
        vmin=0,
        vmax=FAR,
        aspect="auto",
    )
    axes.set_facecolor("0.9")  # not measured
    for y, (_, at) in enumerate(lines):
        for x, T in enumerate(times):
            if (row := at.get(T)) is None:
                continue
            text = f"{row.snn_accuracy:.1f}" + "=" * (row.exact_share == 1)
            colour = "white" if _below(row) < 0.45 * FAR else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color=colour)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="black", linewidth=0.6)
    axes.set_xticks(range(len(times)), [str(T) for T in times])
    axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    axes.tick_params(labelsize=6.5, length=2)
    axes.set_xlabel("time steps T", fontsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03, ticks=[0, FAR / 2, FAR])
    bar.ax.set_yticklabels(["0", f"{FAR / 2:g}", f"≥ {FAR:g}"], fontsize=6.5)
    bar.set_label("points below the quantized network", fontsize=7)
    figure.suptitle(f"Accuracy in %, {subject(rows)}", fontsize=8)
    write(figure, path)


FAR = 20.0  # points below, from which on all are white


def _below(row: Row | None) -> float:
    """Points below the quantized network, or the float one where there is none; NaN if unknown."""
    if row is None:
        return math.nan
    reference = row.ann_accuracy if row.qann_accuracy is None else row.qann_accuracy
    return 0.0 if reference is None else min(FAR, max(0.0, reference - row.snn_accuracy))


_LINES: dict[str, dict[str, Any]] = {
    "ANN": {"color": "black", "linestyle": "--", "linewidth": 1.1},
    "QANN": {"color": "#c44e52", "linestyle": "-.", "linewidth": 1.1},
}


def _panel(
    above: Axes, below: Axes, kind: tuple[str, list[Row]], colours: Mapping[int, Any]
) -> None:
    """Accuracy above, agreement below, of one kind of rows."""
    title, rows = kind
    for n in sorted({row.n for row in rows}):
        line = sorted((row for row in rows if row.n == n), key=lambda row: row.T)
        times = [row.T for row in line]
        style: dict[str, Any] = {
            "color": colours[n],
            "marker": "o",
            "markersize": 3.5,
            "linewidth": 1.4,
        }
        above.plot(times, [row.snn_accuracy for row in line], **style)
        agreed = [math.nan if row.agreement is None else 100 * row.agreement for row in line]
        below.plot(times, agreed, **style)
    for accuracy in {row.ann_accuracy for row in rows if row.ann_accuracy is not None}:
        above.axhline(accuracy, **_LINES["ANN"])
    for accuracy in {row.qann_accuracy for row in rows if row.qann_accuracy is not None}:
        above.axhline(accuracy, **_LINES["QANN"])
    if all(row.agreement is None for row in rows):  # nothing to draw has no range of its own
        below.set_xlim(
            above.get_xlim() if len({row.T for row in rows}) > 1 else (0.9, 1.1 * rows[0].T)
        )
    above.set_title(title, fontsize=8.5)
    above.tick_params(labelbottom=False)
    below.set_xlabel("time steps T", fontsize=9)
    below.set_ylim(top=101.5)
    draw_grid(above)
    draw_grid(below)


# -------------------------------------------------------------------------------------- histograms


# ------------------------------------------------------------------------------------------ shared


def make_figure(
    inches: tuple[float, float], panels: tuple[int, int], **settings: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure, and its panels row by row."""
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(*panels, squeeze=False, **settings)
    return figure, list(axes.flat)


def draw_grid(axes: Axes) -> None:
    """Thin lines behind everything."""
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)


def write(figure: Figure, path: str | Path) -> None:
    """Write the file, whole or not at all, in the form that its name ends with: the same figure
    makes the same bytes. A PDF or SVG is never wider than a page: a figure that is gets smaller.

    Raises:
        SpecError: it is none of `FORMS`.
    """
    form = Path(path).suffix.removeprefix(".")
    if form in FORMS and is_for_print(path) and figure.get_size_inches()[0] > PAGE + 0.01:
        share = PAGE / float(figure.get_size_inches()[0])
        figure.set_size_inches(PAGE, share * float(figure.get_size_inches()[1]))
        shrink_(figure, share)
    if form not in FORMS:
        hint = f"allowed are files of {', '.join(FORMS)}"
        raise SpecError("a picture in no known form", [Fault(str(path), "cannot be drawn", hint)])
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[form]
    settings: dict[Any, Any] = {
        "svg.hashsalt": "mt_convert",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
    }
    with rc_context(settings), atomic(path) as temporary:
        figure.savefig(temporary, format=form, dpi=120, metadata=undated)
