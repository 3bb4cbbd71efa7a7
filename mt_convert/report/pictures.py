"""Pictures of conversion error, from stored values alone: error by layer, accuracy over time,
firing rates and potentials left.

Each function writes one PNG file and leaves no state: figures have a canvas of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import SpecError
from ..system.storage import atomic
from .row_groups import kinds_of, subject
from .rows import Row

_ACROSS = 4  # panels in a row


# ------------------------------------------------------------------------------ accuracy over time


def accuracy_over_time(rows: Sequence[Row], path: str | Path) -> None:
    """Draw accuracy and agreement against T, a line for each n, ANN and QANN as lines across.

    Rows that differ in more than n and T get panels for each kind, headed by what differs.

    Raises:
        SpecError: no rows.
        OutputError: the file cannot be written.
    """
    kinds = kinds_of(rows)
    if not kinds:
        raise SpecError("there are no rows to draw: give the rows of a results.json")
    across = min(_ACROSS, len(kinds))
    down = -(-len(kinds) // across)
    size = (2.0 + max(4.0, 2.9 * across), 0.8 + 4.9 * down)
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
    figure.legend(handles=lines, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle(subject(rows), fontsize=11)
    write(figure, path)


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
    """Write the file, whole or not at all."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
