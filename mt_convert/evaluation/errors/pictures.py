"""Pictures of an error table: error by cause and layer, histograms of rates and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from ...errors import SpecError
from ...report.pictures import draw_grid, make_figure, write
from .rows import RATE_EDGES, RESIDUAL_EDGES, WHOLE, ErrorRow
from .table import ErrorTable

CAUSE_COLOURS = {"clipping": "#e9a03b", "quantization": "#4a7fb5", "unevenness": "#c44e52"}


VIEW_TITLES = {
    "forced": "teacher-forced: each layer alone, with the quantized network's input",
    "propagated": "propagated: with all that the layers before have done",
}


def error_by_layer(table: ErrorTable, n: int, T: int, path: str | Path) -> None:
    """Draw each layer's error at n and T, stacked by cause: teacher-forced, and as propagated.

    Squared errors do not add up where causes cancel, so a dot marks that of the whole.

    Raises:
        SpecError: no layers, or an n and T that the table does not hold.
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from .rows import ErrorRow, ErrorSize, RateRow
        >>> size, path = ErrorSize(0.0, 0.1, 0.2, 0.01), Path(tempfile.mkdtemp()) / "errors.png"
        >>> errors = [ErrorRow("a", view, 3, 4, 1.0, *[size] * 4) for view in VIEW_TITLES]
        >>> rate = RateRow("a", 3, 4, 8, 0.5, 0.0, 0.0, 0.0, 0.1, (8,), (8,))
        >>> error_by_layer(ErrorTable(1, tuple(errors), (rate,), ()), 3, 4, path)
        >>> path.read_bytes()[1:4]
        b'PNG'
    """
    layers = _layers(table)
    figure, panels = make_figure((max(6.4, 1.6 + 0.34 * len(layers)), 6.6), (2, 1))
    for axes, (view, title) in zip(panels, VIEW_TITLES.items(), strict=True):
        _stacks(axes, [table.error(layer, view, n, T) for layer in layers])
        axes.set_title(title, fontsize=9.5, loc="left")
        axes.set_ylabel("mean square error,\n% of the activation's", fontsize=9)
        axes.set_xticks(range(len(layers)), [""] * len(layers))
    panels[1].set_xticks(range(len(layers)), layers, rotation=90, fontsize=7.5)
    handles, labels = panels[0].get_legend_handles_labels()
    heading = f"Conversion error by cause, {_where(table, n, T)}"
    figure.suptitle(heading, fontsize=11)
    handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]  # causes first
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    panels[1].set_xlabel(
        "Bars stack the mean squares of the three causes. Where causes cancel or reinforce each "
        "other,\nthe mean square of their sum (dot) lies below or above the bar.",
        fontsize=8.5,
    )
    write(figure, path)


def _stacks(axes: Axes, rows: Sequence[ErrorRow]) -> None:
    """A bar for each layer, a piece for each cause, a dot for the whole."""
    places, bottoms = range(len(rows)), [0.0] * len(rows)
    for cause, colour in CAUSE_COLOURS.items():
        heights = [100 * (getattr(row, cause).relative or 0.0) for row in rows]
        axes.bar(places, heights, 0.78, bottoms, color=colour, label=cause)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    wholes = [100 * (row.whole.relative or 0.0) for row in rows]
    axes.plot(places, wholes, "o", color="black", markersize=3.5, label="all three together")
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylim(0, 1.08 * max(*bottoms, *wholes, 1e-9))
    draw_grid(axes)


def histograms(table: ErrorTable, n: int, T: int, path: str | Path) -> None:
    """Draw how often neurons fire by T, and what potential is left in them: the network above, each
    layer below.

    Raises:
        SpecError: no layers, or an n and T that the table does not hold.
        OutputError: the file cannot be written.
    """
    layers = _layers(table)
    depth = max(1.8, 0.5 + 0.2 * len(layers))
    ratios = {"height_ratios": [2.4, depth]}
    figure, panels = make_figure((9.2, 2.2 + 2.4 + depth), (2, 2), gridspec_kw=ratios)
    for column, (name, label, edges) in enumerate(_HISTOGRAMS):
        counts = [getattr(table.rate(layer, n, T), name) for layer in (WHOLE, *layers)]
        shares = [[100 * count / sum(bins) for count in bins] for bins in counts]
        above, below = panels[column], panels[2 + column]
        above.bar(range(len(shares[0])), shares[0], 0.9, color="#4a7fb5")
        above.set_yscale("log")
        above.set_ylim(0.01, 130)
        above.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
        draw_grid(above)
        image = below.imshow(
            [[max(share, 1e-9) for share in bins] for bins in shares[1:]],
            aspect="auto",
            norm=LogNorm(0.01, 100, clip=True),
            cmap="Blues",
        )
        below.set_yticks(range(len(layers)), layers if column == 0 else [], fontsize=7.5)
        below.set_xlabel(label, fontsize=9)
        for axes in (above, below):
            axes.set_xticks(*edges)
            axes.set_xlim(-0.6, len(shares[0]) - 0.4)
            axes.tick_params(axis="x", labelsize=8)
    panels[0].set_ylabel("% of neurons × images,\nall layers", fontsize=9)
    bar = figure.colorbar(image, ax=panels[2:], ticks=[0.01, 0.1, 1, 10, 100], pad=0.01)
    bar.ax.set_yticklabels(["≤ 0.01", "0.1", "1", "10", "100"], fontsize=8.5)
    bar.set_label("% of a layer's neurons × images", fontsize=9)
    figure.suptitle(f"Firing rates and potentials left, {_where(table, n, T)}", fontsize=11)
    write(figure, path)


def _rate_ticks() -> tuple[list[float], list[str]]:
    """A bin for 0, then edges between the others."""
    places = [0.0, *(k + 0.5 for k in range(2, len(RATE_EDGES), 2))]
    return places, ["0", *(f"{edge:g}" for edge in RATE_EDGES[2::2])]


def _residual_ticks() -> tuple[list[float], list[str]]:
    """Whole thresholds."""
    whole = [k for k, edge in enumerate(RESIDUAL_EDGES) if edge == int(edge)]
    return [k + 0.5 for k in whole], [f"{RESIDUAL_EDGES[k]:g}" for k in whole]


_HISTOGRAMS = (
    (
        "rate_counts",
        "events per neuron and step, as a share of the most\npossible (first bin: no spike at all)",
        _rate_ticks(),
    ),
    (
        "residual_counts",
        "potential left after T, in thresholds Δ (0 to 1: nothing left to\nemit; the first and the "
        "last bin hold all that lies beyond)",
        _residual_ticks(),
    ),
)


def _layers(table: ErrorTable) -> list[str]:
    """The layers to draw."""
    if not table.layers:
        raise SpecError("the table of errors holds no layers to draw")
    return table.layers


def _where(table: ErrorTable, n: int, T: int) -> str:
    """What was run, on what."""
    return f"n = {n}, T = {T}, {table.images:,} images"
