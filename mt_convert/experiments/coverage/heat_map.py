"""A picture of a sweep: families down, what was shown of them across."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .families import COLUMNS, Family
from .rows import Table

PANELS = 4
LABEL_INCHES, CELLS_INCHES, GAP_INCHES = 1.75, 2.05, 0.1
ROW_INCHES, HEAD_INCHES = 0.235, 1.05
NONE = "#f4a261"


def draw(table: Table, path: Path) -> None:
    """Draw the families of a table into a PNG file.

    Example:
        >>> import tempfile
        >>> from .rows import CoverageRow
        >>> path = Path(tempfile.mkdtemp()) / "families.png"
        >>> draw(Table({}, {}, (CoverageRow("vgg11", "vgg", error="no time"),)), path)
        >>> path.read_bytes()[1:4]
        b'PNG'
    """
    families = list(table.families.items())
    panels = max(1, min(PANELS, -(-len(families) // 8)))
    length = max(1, -(-len(families) // panels))
    across = LABEL_INCHES + CELLS_INCHES + GAP_INCHES
    width, height = panels * across, HEAD_INCHES + ROW_INCHES * length + GAP_INCHES
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    title = f"{len(families)} families, {len(table.rows)} architectures of timm"
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / height)
    for panel in range(panels):
        left = panel * across + LABEL_INCHES
        box = (
            left / width,
            GAP_INCHES / height,
            CELLS_INCHES / width,
            ROW_INCHES * length / height,
        )
        _panel(figure.add_axes(box), families[panel * length : (panel + 1) * length], length)
    figure.savefig(path, format="png", dpi=110)


def _panel(axes: Axes, families: Sequence[tuple[str, Family]], length: int) -> None:
    """One block of families: a coloured cell with its number for each column."""
    for y, (_, rows) in enumerate(families):
        for x, measure in enumerate(COLUMNS.values()):
            share, text = measure(rows)
            _cell(axes, (x, y), share, text)
    axes.set_xlim(0, len(COLUMNS))
    axes.set_ylim(length, 0)
    axes.set_xticks([x + 0.5 for x in range(len(COLUMNS))], list(COLUMNS), fontsize=7.5)
    axes.xaxis.tick_top()
    axes.set_yticks([y + 0.5 for y in range(len(families))], [name for name, _ in families])
    axes.tick_params(length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: Axes, corner: tuple[int, int], share: float, text: str) -> None:
    """Dark blue where all is well, paler the less is, orange where nothing is."""
    strength = max(0.0, (share - 0.5) / 0.5)
    colour = colormaps["Blues"](0.12 + 0.68 * strength) if share > 0 else NONE
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=1.2))
    axes.text(
        corner[0] + 0.5,
        corner[1] + 0.53,
        text,
        ha="center",
        va="center",
        fontsize=7.5,
        color="white" if strength > 0.6 else "black",
    )
