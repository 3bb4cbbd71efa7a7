"""One picture: speed beside the best float network, growth over T, growth over size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ...errors import SpecError
from ...report.pictures import is_for_print, write
from .pages import groups, kind_of, most_steps
from .rows import Benchmark, BenchRow, ContenderKind

COLOURS = {
    ContenderKind.INTEGER: "#c44e52",
    ContenderKind.FLOAT: "#4a7fb5",
    ContenderKind.QUANTIZED: "#e9a03b",
    ContenderKind.PEER: "#7a7a7a",
    None: "black",
}
_ACROSS, _ACROSS_PRINTED = 3, 2  # panels in a row


def draw(benchmark: Benchmark, path: str | Path) -> None:
    """Bars of relative speed for each network and batch; below, time over T and over size. A PDF
    or SVG is as wide as a printed page.

    Raises:
        SpecError: no rows.
        OutputError: the file cannot be written.
    """
    each = groups(benchmark.rows)
    if not each:
        raise SpecError("there is nothing to draw: no contender was timed")
    across, inches = (_ACROSS_PRINTED, 4.2) if is_for_print(path) else (_ACROSS, 5.2)
    down = -(-len(each) // across)
    sizes = [len(rows) for rows in each.values()]
    tall = [max(sizes[k * across : (k + 1) * across]) for k in range(down)]
    heights = [*(0.9 + 0.2 * bars for bars in tall), 3.4]
    figure = Figure(figsize=(inches * across, sum(heights) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(down + 1, 2 * across, height_ratios=heights)
    for k, ((network, batch), rows) in enumerate(each.items()):
        place = grid[k // across, 2 * (k % across) : 2 * (k % across) + 2]
        _bars(figure.add_subplot(place), f"{network}, batch {batch}", rows)
    _over_time(figure.add_subplot(grid[down, :across]), most_steps(benchmark.rows))
    _over_size(figure.add_subplot(grid[down, across:]), benchmark)
    handles = [_patch(kind) for kind in ContenderKind]
    figure.legend(
        handles,
        [str(kind) for kind in ContenderKind],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        frameon=False,
    )
    write(figure, path)


def _patch(kind: ContenderKind) -> Patch:
    """A coloured square for the legend."""
    return Patch(color=COLOURS[kind])


def label(row: BenchRow) -> str:
    """A contender and its steps."""
    return row.contender if row.T is None else f"{row.contender}, T={row.T}, n={row.n or '∞'}"


def _bars(axes: Axes, title: str, rows: Sequence[BenchRow]) -> None:
    """Speed relative to the best float network, fastest on top; images a second where none ran."""
    relative = all(row.ratio_to_best_float is not None for row in rows)
    pairs = [(row.ratio_to_best_float or 1e6 / row.us_per_image, row) for row in rows]
    pairs.sort(key=lambda pair: pair[0])
    speeds, ordered = [speed for speed, _ in pairs], [row for _, row in pairs]
    axes.barh(range(len(ordered)), speeds, 0.8, color=[COLOURS[kind_of(row)] for row in ordered])
    axes.set_yticks(range(len(ordered)), [label(row) for row in ordered], fontsize=7)
    _logarithmic(axes.xaxis)
    if relative:
        axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed / best float network" if relative else "images a second", fontsize=8)
    axes.set_title(title, fontsize=9.5, loc="left")
    _grid(axes)


def _over_time(axes: Axes, rows: Sequence[BenchRow]) -> None:
    """Microseconds per image against T, a line for each contender that spikes."""
    names = dict.fromkeys(row.contender for row in rows if row.T is not None)
    for name in names:
        line = sorted((row.T, row.us_per_image) for row in rows if row.contender == name and row.T)
        axes.plot(*zip(*line, strict=True), marker="o", markersize=3.5, linewidth=1.3, label=name)
    floats = [row for row in rows if kind_of(row) is ContenderKind.FLOAT]
    if floats:
        best = min(floats, key=lambda row: row.us_per_image)
        axes.axhline(best.us_per_image, color="black", linestyle="--", linewidth=1)
        axes.plot([], [], color="black", linestyle="--", linewidth=1, label=best.contender)
    times = sorted({row.T for row in rows if row.T is not None})
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, [str(T) for T in times])
    _logarithmic(axes.yaxis)
    axes.set_xlabel("time steps T", fontsize=8)
    axes.set_ylabel("µs per image", fontsize=8)
    where = f"{rows[0].network}, batch {rows[0].batch}"
    axes.set_title(f"Growth over T: {where}", fontsize=9.5, loc="left")
    axes.legend(fontsize=7, frameon=False)
    _grid(axes)


def _over_size(axes: Axes, benchmark: Benchmark) -> None:
    """Microseconds per image against multiply-adds, at T = 1 or without steps, largest batches: the
    fastest contender of each kind, the others in grey behind them."""
    largest = {
        network: max(b for n, b in groups(benchmark.rows) if n == network)
        for network in benchmark.networks
        if any(row.network == network for row in benchmark.rows)
    }
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in benchmark.rows:
        if row.T in (None, 1) and row.batch == largest.get(row.network):
            macs = float(benchmark.networks[row.network]["macs"])
            lines.setdefault(row.contender, []).append((macs / 1e6, row.us_per_image))
    if not lines:
        axes.set_axis_off()
        return
    kinds = {row.contender: kind_of(row) for row in benchmark.rows}
    leading = {kinds[name]: name for name in sorted(lines, key=lambda name: _order(lines[name]))}
    for name, points in lines.items():
        xs, ys = zip(*sorted(points), strict=True)
        if name not in leading.values():
            axes.plot(xs, ys, color="0.82", linewidth=0.8, zorder=1)
            continue
        colour = COLOURS[kinds[name]]
        axes.plot(xs, ys, marker="o", markersize=3.5, linewidth=1.6, color=colour, label=name)
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    axes.set_xlabel("million multiply-adds per image", fontsize=8)
    axes.set_ylabel("µs per image", fontsize=8)
    title = "Growth over size, T = 1, largest batch of each: the fastest of each kind"
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.legend(fontsize=7, frameon=False)
    _grid(axes)


def _order(points: Sequence[tuple[float, float]]) -> tuple[int, float]:
    """Last comes what was timed on most networks, and of these the fastest on the largest."""
    return len(points), -max(points)[1]


def _logarithmic(axis: Axis) -> None:
    """A logarithmic scale with plain numbers at it."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))


def _grid(axes: Axes) -> None:
    """Thin lines behind everything."""
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=7.5)
