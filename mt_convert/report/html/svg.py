"""Scalable drawings as text: elements, axes, lines. Colours are classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 70, 26, 36


def element(tag: str, *content: Any, **attributes: Any) -> Markup:
    """One element; ``_`` at the end of an attribute's name is dropped, ``_`` inside is a hyphen.

    Example:
        >>> element("text", "a < b", x=1, class_="axis")
        Markup('<text x="1" class="axis">a &lt; b</text>')
    """
    texts = [
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _short(value))
        for name, value in attributes.items()
        if value is not None
    ]
    inside = Markup("").join(content)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), Markup("").join(texts), inside, Markup(tag))


def _short(value: Any) -> Any:
    """A number with as many places as can be seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def drawing(
    content: Iterable[Any], label: str, width: float = WIDTH, height: float = HEIGHT, **more: Any
) -> Markup:
    """A whole drawing, which a reader of screens is told by its label.

    Example:
        >>> 'aria-label="nothing"' in drawing([], "nothing")
        True
    """
    size = f"0 0 {_short(float(width))} {_short(float(height))}"
    attributes = {"viewBox": size, "role": "img", "aria_label": label, "class_": "chart"} | more
    opened = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
    )
    return Markup(f"<svg{opened}>") + Markup("").join(content) + Markup("</svg>")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high.

    Example:
        >>> ticks(0, 10), ticks(97.1, 98.2, 3), ticks(0, 8, 4)
        ([0, 2, 4, 6, 8, 10], [97.5, 98], [0, 2, 4, 6, 8])
        >>> ticks(0, 9, 4)
        [0, 2.5, 5, 7.5]
    """
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    marks = [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return [int(item) if item == int(item) else item for item in marks]


@dataclass(frozen=True)
class Axes:
    """Where numbers lie in a drawing: from (x0, y0) to (x1, y1); x by halving where ``log``."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool = False
    width: float = WIDTH
    height: float = HEIGHT
    right: float = RIGHT

    def x(self, value: float) -> float:
        """The place of a number on the horizontal axis."""
        scale: Callable[[float], float] = math.log2 if self.log else float
        low, high = scale(self.x0), scale(self.x1)
        share = (scale(value) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (self.width - LEFT - self.right)

    def y(self, value: float) -> float:
        """The place of a number on the vertical axis."""
        share = (value - self.y0) / (self.y1 - self.y0) if self.y1 > self.y0 else 0.5
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def frame(
        self, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str
    ) -> Iterable[Markup]:
        """The grid, its numbers and what they are."""
        end = self.width - self.right
        for value in ys:
            y = self.y(value)
            yield element("line", x1=LEFT, x2=end, y1=y, y2=y, class_="grid")
            text = number(value)
            yield element("text", text, x=LEFT - 6, y=y + 4, class_="axis end")
        for value in xs:
            x = self.x(value)
            yield element(
                "line",
                x1=x,
                x2=x,
                y1=self.height - BOTTOM,
                y2=self.height - BOTTOM + 4,
                class_="tick",
            )
            yield element(
                "text", number(value), x=x, y=self.height - BOTTOM + 16, class_="axis middle"
            )
        middle = (LEFT + end) / 2
        yield element("text", x_label, x=middle, y=self.height - 4, class_="axis middle label")
        yield element("text", y_label, x=6, y=14, class_="axis label")

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> Markup:
        """Points joined by straight lines."""
        path = " ".join(
            f"{'M' if k == 0 else 'L'}{self.x(x):.1f},{self.y(y):.1f}"
            for k, (x, y) in enumerate(points)
        )
        return element("path", d=path, class_=f"line {class_}")

    def level(self, value: float, text: str, class_: str) -> list[Markup]:
        """A horizontal line with its name at the right end."""
        y, end = self.y(value), self.width - self.right
        return [
            element("line", x1=LEFT, x2=end, y1=y, y2=y, class_=f"level {class_}"),
            element("text", text, x=end + 4, y=y + 4, class_=f"axis {class_}"),
        ]


def number(value: float) -> str:
    """A number as it stands at an axis.

    Example:
        >>> number(1500), number(0.25), number(12.0), number(2e6)
        ('1500', '0.25', '12', '2M')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g}{unit}"
    return f"{value:.4g}"


def spread(
    places: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Places of labels, moved apart so that no two are nearer than ``gap``, from low to high; in
    the same order.

    Example:
        >>> spread([10.0, 12.0, 40.0], 10), spread([10.0, 12.0], 10, low=10)
        ([6.0, 16.0, 40.0], [10, 20])
    """
    groups: list[list[int]] = []

    def first_place(group: list[int]) -> float:
        reach = (len(group) - 1) * gap
        middle = sum(places[k] for k in group) / len(group)
        return max(low, min(middle - reach / 2, high - reach))

    for place in sorted(range(len(places)), key=places.__getitem__):
        groups.append([place])
        while len(groups) > 1:
            before, last = groups[-2:]
            if first_place(last) - first_place(before) >= len(before) * gap - 1e-9:
                break
            groups[-2:] = [before + last]
    moved = list(places)
    for group in groups:
        for offset, place in enumerate(group):
            moved[place] = first_place(group) + offset * gap
    return moved
