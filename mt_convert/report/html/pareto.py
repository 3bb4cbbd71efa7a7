"""Accuracy against what it costs, for several networks: which of them none other beats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .svg import BOTTOM, LEFT, TOP, Axes, drawing, element, number, ticks

WIDTH, HEIGHT, RIGHT = 520, 330, 18
COLOURS = 6
SHORT = 18  # letters of a name beside its point
RADIUS = 5.0
LETTER = 7.8  # wide, at most, in the larger print of small screens

KINDS = {
    "spiking": "spiking network",
    "quantized": "quantized network",
    "control": "control, the float network trained on as long",
    "float": "float network",
}


@dataclass(frozen=True)
class Point:
    """A network of a run (by its place among them) in one way to run it: cost and accuracy.

    ``stands`` for the run: its name is written beside it. Points of one ``line`` are joined.
    """

    cost: float
    accuracy: float
    run: int
    kind: str
    words: str
    stands: bool = False
    line: str = ""


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that none other beats in cost and accuracy, cheapest first; of equal ones the
    first.

    Example:
        >>> costs = [(2, 90.0), (1, 80.0), (3, 85.0), (2, 90.0)]
        >>> made = [Point(cost, accuracy, 0, "spiking", "") for cost, accuracy in costs]
        >>> [(item.cost, item.accuracy) for item in frontier(made)]
        [(1, 80.0), (2, 90.0)]
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda item: (item.cost, -item.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def pareto_chart(
    points: Sequence[Point], names: Sequence[str], label: str, marks: Sequence[float] = ()
) -> Markup:
    """The points, those of a line joined in order of their cost, and the line that none is above.

    ``marks``: numbers at the axis of costs, which goes by factors; by default 1, 2 and 5 times
    powers of ten.

    Example:
        >>> chart = pareto_chart([Point(4, 90.0, 0, "spiking", "a, T = 4")], ["a"], "time steps T")
        >>> "a, T = 4" in chart
        True
    """
    costs, accuracies = [item.cost for item in points], [item.accuracy for item in points]
    low, high = min(accuracies), max(accuracies)
    room = max(0.5, (high - low) * 0.12)
    low, high = max(0.0, low - room), min(100.0, high + room)
    left, right = min(costs), max(costs)
    axes = Axes(
        left / 1.3, right * 1.3, low, high, log=True, width=WIDTH, height=HEIGHT, right=RIGHT
    )
    shown = [item for item in marks or steps_of(left, right) if left / 1.3 <= item <= right * 1.3]
    content = list(axes.frame(shown or [left], ticks(low, high, 5), label, "% right"))
    content.append(_staircase(axes, frontier(points)))
    for run, name in dict.fromkeys((item.run, item.line) for item in points if item.line):
        joined = [item for item in points if (item.run, item.line) == (run, name)]
        joined.sort(key=lambda item: item.cost)
        way = [(item.cost, item.accuracy) for item in joined]
        content.append(axes.line(way, f"s{run % COLOURS} thin"))
    content += [_mark(axes, item) for item in points]
    content += _names(axes, points, names)
    best = frontier(points)
    told = "; ".join(f"{item.words}: {item.accuracy:.2f} %" for item in best)
    return drawing(content, f"Not beaten by another: {told}", WIDTH, HEIGHT, class_="chart wide")


def steps_of(low: float, high: float) -> list[float]:
    """Round numbers between two others, apart by factors.

    Example:
        >>> steps_of(3, 60), steps_of(0.5, 0.9)
        ([5.0, 10.0, 20.0, 50.0], [0.5, 0.9])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    marks = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    inside = [item for item in marks if low <= item <= high]
    if len(inside) > 7:
        inside = [item for item in (10.0**power for power in powers) if low <= item <= high]
    return inside if len(inside) > 1 else sorted({*inside, low, high})


def _staircase(axes: Axes, best: Sequence[Point]) -> Markup:
    """The line that no point is above: flat until the next that is better."""
    places = [(axes.x(item.cost), axes.y(item.accuracy)) for item in best]
    path = f"M{places[0][0]:.1f},{axes.height - BOTTOM:.1f} V{places[0][1]:.1f}"
    path += "".join(f" H{x:.1f} V{y:.1f}" for x, y in places[1:])
    return element("path", d=f"{path} H{axes.width - axes.right:.1f}", class_="frontier")


def _mark(axes: Axes, point: Point) -> Markup:
    """A point, in the shape of its kind of network and the colour of its run."""
    x, y = axes.x(point.cost), axes.y(point.accuracy)
    said = element("title", f"{point.words}: {point.accuracy:.2f} % at {number(point.cost)}")
    class_ = f"dot s{point.run % COLOURS} of-{point.kind}"
    size = RADIUS if point.stands or point.kind != "spiking" else 3.0
    if point.kind == "spiking":
        return element("circle", said, cx=x, cy=y, r=size, class_=class_)
    corners = {
        "quantized": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "control": ((0, -1.3), (1.2, 1), (-1.2, 1)),
        "float": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    }[point.kind]
    path = "M" + " L".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in corners) + " Z"
    return element("path", said, d=path, class_=class_)


def _names(axes: Axes, points: Sequence[Point], names: Sequence[str]) -> Iterable[Markup]:
    """The name of each run beside its point, where it covers the least."""
    taken = [(axes.x(item.cost) - 7, axes.y(item.accuracy) - 7, 14.0, 14.0) for item in points]
    for point in points:
        if not point.stands:
            continue
        name = names[point.run]
        text = name if len(name) <= SHORT else name[: SHORT - 1] + "…"
        x, y, wide = axes.x(point.cost), axes.y(point.accuracy), LETTER * len(text)
        places = [
            (x + across, y + down)
            for across in (9, -9 - wide, -wide / 2)
            for down in (-6, -20, 8, 22, -34, 36)
        ]
        boxes = [
            (left, top, wide, 12.0)
            for left, top in places
            if left >= LEFT
            and left + wide <= axes.width
            and top >= TOP - 12
            and top + 12 <= axes.height - BOTTOM
        ] or [(max(LEFT, min(x, axes.width - wide)), y - 18, wide, 12.0)]
        box = min(boxes, key=lambda item: sum(_overlap(item, other) for other in taken))
        taken.append(box)
        yield element(
            "text", text, x=box[0], y=box[1] + 10, class_=f"axis halo s{point.run % COLOURS}"
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """How much of two boxes (left, top, wide, high) lies on each other."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
