"""A picture of a sweep: families down, what was shown of them across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...report.pictures import PAGE, PRINTED, is_for_print, shrink_, write
from .families import COLUMNS, Family
from .rows import Table

NONE = "#f4a261"


@dataclass(frozen=True)
class Layout:
    """Sizes in inches: of names, of all cells beside them, of a row, of what stands above; headings
    turned by degrees."""

    panels: int
    label: float
    cells: float
    row: float
    head: float
    gap: float = 0.1
    turned: float = 0


SCREEN = Layout(panels=4, label=1.75, cells=2.6, row=0.235, head=1.05)
PRINT = Layout(panels=3, label=1.02, cells=PAGE / 3 - 1.12, row=0.17, head=0.95, turned=75)


def draw(table: Table, path: Path) -> None:
    """Draw the families of a table; a PDF or SVG is as wide as a printed page.

    Raises:
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from .rows import CoverageRow
        >>> path = Path(tempfile.mkdtemp()) / "families.png"
        >>> draw(Table({}, {}, (CoverageRow("vgg11", "vgg", error="no time"),)), path)
        >>> path.read_bytes()[1:4]
        b'PNG'
    """
    families = list(table.families.items())
    size = PRINT if is_for_print(path) else SCREEN
    panels = max(1, min(size.panels, -(-len(families) // 8)))
    length = max(1, -(-len(families) // panels))
    across = size.label + size.cells + size.gap
    width, height = panels * across, size.head + size.row * length + size.gap
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    title = f"{len(families)} families, {len(table.rows)} architectures of timm"
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / height)
    for panel in range(panels):
        left = panel * across + size.label
        box = (
            left / width,
            size.gap / height,
            size.cells / width,
            size.row * length / height,
        )
        _panel(figure.add_axes(box), families[panel * length : (panel + 1) * length], length, size)
    if size is PRINT:
        shrink_(figure, PRINTED**2)
    write(figure, path)


def _panel(axes: Axes, families: Sequence[tuple[str, Family]], length: int, size: Layout) -> None:
    """One block of families: a coloured cell with its number for each column."""
    for y, (_, rows) in enumerate(families):
        for x, measure in enumerate(COLUMNS.values()):
            share, text = measure(rows)
            _cell(axes, (x, y), share, text)
    axes.set_xlim(0, len(COLUMNS))
    axes.set_ylim(length, 0)
    axes.xaxis.tick_top()
    heads = [name.replace("\n", " ") if size.turned else name for name in COLUMNS]
    axes.set_xticks([x + 0.5 for x in range(len(COLUMNS))], heads, fontsize=7.5)
    if size.turned:
        for label in axes.get_xticklabels():
            label.set(rotation=size.turned, ha="left", va="bottom", rotation_mode="anchor")
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
