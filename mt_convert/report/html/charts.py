"""What the page of a run draws: accuracy over T, spikes, potentials, errors, training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..records import figures
from ..row_groups import kinds_of
from ..rows import Row
from .svg import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axes, drawing, element, spread, ticks

LINES = 6
CELL, GUTTER, ABOVE = 8, 38, 12


def accuracy_panels(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """For each kind of rows of several T a drawing: a line for each n, float and quantized as
    levels.

    Example:
        >>> accuracy_panels([])
        []
    """
    return [
        (words.replace("\n", ", "), _accuracy(alike))
        for words, alike in kinds_of(rows).items()
        if len({row.T for row in alike}) > 1
    ]


def _accuracy(rows: Sequence[Row]) -> Markup:
    """One panel."""
    first = rows[0]
    numbers = sorted({row.n for row in rows})
    shown = numbers if len(numbers) <= LINES else _some(numbers, LINES)
    levels = {
        "float": first.ann_accuracy,
        "control": first.control_accuracy,
        "quantized": first.qann_accuracy,
    }
    known = {name: value for name, value in levels.items() if value is not None}
    lines = {
        n: sorted({row.T: row.snn_accuracy for row in rows if row.n == n}.items()) for n in shown
    }
    values = [value for points in lines.values() for _, value in points] + list(known.values())
    times = sorted({row.T for row in rows})
    low, high = _range(values)
    axes = Axes(times[0], times[-1], low, high, log=times[-1] > 4)
    marks = times if len(times) <= 7 else _some(times, 7)
    content = list(axes.frame(marks, ticks(low, high, 4), "time steps T", "% right"))
    names, places, classes = [], [], []
    for name, value in known.items():
        content.append(axes.level(value, "", f"is-{name}")[0])
        names.append(name)
        places.append(axes.y(value))
        classes.append(f"is-{name}")
    for place, (n, points) in enumerate(lines.items()):
        content.append(axes.line(points, f"s{place}"))
        exact = {row.T for row in rows if row.n == n and row.exact_share == 1}
        for T, value in points:
            budget = _budget(first, n, T)
            said = f"n = {n}, T = {T}: {value:.2f} %" + (" (every activation equal)" * (T in exact))
            mark = element("title", said + (f"; {budget}" if budget else ""))
            size = 4.5 if T in exact else 2.6
            at = {"cx": axes.x(T), "cy": axes.y(value)}
            content.append(element("circle", mark, **at, r=size, class_=f"dot s{place}"))
            if budget:
                content.append(element("circle", **at, r=7, class_="ring"))
        names.append(f"n = {n}" if n else "n = ∞")
        places.append(axes.y(points[-1][1]))
        classes.append(f"s{place}")
    bottom = axes.height - BOTTOM
    for name, y, class_ in zip(names, spread(places, 12, TOP, bottom), classes, strict=True):
        content.append(
            element("text", name, x=axes.width - axes.right + 11, y=y + 4, class_=f"axis {class_}")
        )
    said = "; ".join(
        [f"{name} {value:.2f} %" for name, value in known.items()]
        + [f"n = {n}: {points[-1][1]:.2f} % at T = {points[-1][0]}" for n, points in lines.items()]
    )
    return drawing(content, f"Accuracy over time steps: {said}")


def _budget(row: Row, n: int, T: int) -> str:
    """What is said where a window has exactly the levels of the quantizer, else nothing."""
    if row.qann_accuracy is None:
        return ""
    if row.ladder == "radix":
        return f"radix: {n + 1}^{T} = L + 1" if (n + 1) ** T == row.levels + 1 else ""
    if row.ladder == "uniform" and row.presentation == "every_step" and n * T == row.levels:
        return f"iso-level: {n} · {T} = L"
    return ""


def _some(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, first and last among them."""
    last = len(items) - 1
    return [items[round(k * last / (count - 1))] for k in range(count)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis of percentages, with room around what is shown."""
    low, high = min(values), max(values)
    room = max(0.5, (high - low) * 0.06)
    return max(0.0, low - room), min(100.0, high + room) if high <= 100 else high + room


# --------------------------------------------------------------------------------- the network


ROW, LANE, LANES = 28, 9, 7


def network_lanes(nodes: Sequence[Mapping[str, Any]]) -> Markup:
    """Dots for the nodes of a network from the top down, and lines from those that feed others.

    Example:
        >>> "circle" in network_lanes([{"kind": "neurons", "feeders": [], "spike_fed": False}])
        True
    """
    x = LANE * (LANES + 1) + 6
    edges = [(source, place) for place, node in enumerate(nodes) for source in node["feeders"]]
    far = [edge for edge in edges if edge[1] > edge[0] + 1]
    lanes = _lanes(far)
    content = []
    for source, place in edges:
        class_ = "edge spikes" if nodes[source]["kind"] in ("neurons", "analog") else "edge"
        top, bottom = source * ROW + ROW / 2, place * ROW + ROW / 2
        if place == source + 1:
            path = f"M{x},{top} V{bottom}"
        else:
            lane = x - LANE * (lanes[source, place] + 1)
            path = (
                f"M{x},{top} Q{lane},{top} {lane},{top + 12} V{bottom - 12} "
                f"Q{lane},{bottom} {x},{bottom}"
            )
        content.append(element("path", d=path, class_=class_))
    for place, node in enumerate(nodes):
        y = place * ROW + ROW / 2
        if node["kind"] == "neurons":
            content.append(element("circle", cx=x, cy=y, r=6, class_="node neurons"))
        else:
            class_ = f"node {node_class(node)}"
            content.append(
                element("rect", x=x - 5.5, y=y - 5.5, width=11, height=11, rx=2, class_=class_)
            )
    width = x + 14
    return drawing(
        content,
        f"The network from its images to its read-out, {len(nodes)} nodes, in the list beside",
        width,
        len(nodes) * ROW,
        class_="lanes",
        style=f"width:{width}px;height:{len(nodes) * ROW}px",
    )


def node_class(node: Mapping[str, Any]) -> str:
    """How a node is coloured: by what feeds it."""
    if node["kind"] in ("weighted", "analog"):
        return "spike-fed" if node["spike_fed"] and not node["reason"] else "analog"
    return str(node["kind"])


def _lanes(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """A lane for each edge, shorter ones nearer; more than there are lanes share the last."""
    taken: list[list[tuple[int, int]]] = [[] for _ in range(LANES)]
    lanes = {}
    for edge in sorted(edges, key=lambda edge: (edge[1] - edge[0], edge)):
        free = (
            place
            for place, others in enumerate(taken)
            if all(edge[1] <= other[0] or edge[0] >= other[1] for other in others)
        )
        lanes[edge] = next(free, LANES - 1)
        taken[lanes[edge]].append(edge)
    return lanes


# ------------------------------------------------------------ spikes of one image


def raster(layer: Mapping[str, Any], place: int) -> Markup:
    """Spikes of some neurons of a layer over the steps: up in one colour, down in another.

    Example:
        >>> layer = {"name": "a", "chosen": [4], "spikes": [[1, -1]]}
        >>> "up" in raster(layer, 0) and "down" in raster(layer, 0)
        True
    """
    neurons, steps = len(layer["chosen"]), len(layer["spikes"][0]) if layer["spikes"] else 1
    height = ABOVE + max(1, neurons) * CELL + BOTTOM
    width = (WIDTH - GUTTER - 8) / steps
    most = max((abs(item) for row in layer["spikes"] for item in row), default=1) or 1
    content = []
    for k, row in enumerate(layer["spikes"]):
        y = ABOVE + k * CELL
        for t, size in enumerate(row):
            if size:
                said = element("title", f"neuron {layer['chosen'][k]}, step {t + 1}: {size:+g}")
                content.append(
                    element(
                        "rect",
                        said,
                        x=GUTTER + t * width + 0.5,
                        y=y + 0.5,
                        width=max(1.0, width - 1),
                        height=CELL - 1,
                        class_="up" if size > 0 else "down",
                        opacity=0.35 + 0.65 * abs(size) / most,
                    )
                )
        content.append(
            element(
                "rect",
                element("title", f"neuron {layer['chosen'][k]}"),
                x=0,
                y=y,
                width=WIDTH,
                height=CELL,
                class_="pick",
                data_layer=place,
                data_neuron=k,
            )
        )
    base = height - BOTTOM
    content.append(element("line", x1=GUTTER, x2=WIDTH - 8, y1=base, y2=base, class_="tick"))
    for t in range(0, steps, max(1, -(-steps // 8))):
        x = GUTTER + (t + 0.5) * width
        content.append(element("text", t + 1, x=x, y=base + 14, class_="axis middle"))
    content.append(
        element(
            "text", "time step", x=(WIDTH + GUTTER) / 2, y=height - 6, class_="axis middle label"
        )
    )
    for k in (0, neurons - 1) if neurons > 1 else range(neurons):
        y = ABOVE + (k + 1) * CELL
        content.append(element("text", layer["chosen"][k], x=GUTTER - 4, y=y, class_="axis end"))
    up = sum(size > 0 for row in layer["spikes"] for size in row)
    down = sum(size < 0 for row in layer["spikes"] for size in row)
    label = (
        f"Spikes of {neurons} neurons of {layer['name']} over {steps} steps: "
        f"{up} positive, {down} negative"
    )
    return drawing(content, label, WIDTH, height, class_="chart raster")


def potentials(layer: Mapping[str, Any], place: int) -> Markup:
    """The potential of each chosen neuron over the steps, one shown at a time; the band is where a
    potential rests, between the first threshold and 0.

    Example:
        >>> layer = {"name": "a", "chosen": [4], "spikes": [[1, -1]], "potentials": [[0.5, 1.5]]}
        >>> potentials(layer, 0).count("<g")
        1
    """
    traces = layer["potentials"]
    busiest = busiest_neuron(layer)
    steps = len(traces[0]) if traces else 1
    values = [value for row in traces for value in row] + [0.0, 1.0]
    low, high = min(values), max(values)
    room = (high - low) * 0.08
    low, high = low - room, high + room
    axes = Axes(0.5, steps + 0.5, low, high, right=12, height=HEIGHT - 20)
    marks = [t for t in range(1, steps + 1) if (t - 1) % max(1, -(-steps // 8)) == 0]
    band = element(
        "rect",
        x=LEFT,
        y=axes.y(1),
        width=axes.width - axes.right - LEFT,
        height=axes.y(0) - axes.y(1),
        class_="band",
    )
    frame = axes.frame(marks, ticks(low, high, 4), "time step", "potential behind the step, in Δ")
    content: list[Any] = [band, *frame]
    for k, row in enumerate(traces):
        inside: list[Any] = [axes.line([(t + 1, v) for t, v in enumerate(row)], "s0")]
        for t, (value, size) in enumerate(zip(row, layer["spikes"][k], strict=True)):
            said = f"step {t + 1}: potential {value:.2f} Δ" + (f", emits {size:+g}" if size else "")
            class_ = "dot s0" if not size else "dot up" if size > 0 else "dot down"
            inside.append(
                element(
                    "circle",
                    element("title", said),
                    cx=axes.x(t + 1),
                    cy=axes.y(value),
                    r=4.5 if size else 2.6,
                    class_=class_,
                )
            )
        hidden = "trace" if k == busiest else "trace off"
        content.append(element("g", *inside, class_=hidden, data_neuron=k))
    label = f"Membrane potential of a neuron of {layer['name']} over {steps} steps"
    return drawing(
        content, label, axes.width, axes.height, class_="chart potentials", data_layer=place
    )


def busiest_neuron(layer: Mapping[str, Any]) -> int:
    """The place of the chosen neuron that fires in most steps, shown first.

    Example:
        >>> busiest_neuron({"spikes": [[1, 0], [1, -1]]})
        1
    """
    counts = [sum(size != 0 for size in row) for row in layer["spikes"]]
    return counts.index(max(counts)) if counts else 0


# ------------------------------------------------------------ errors, training, bars


def error_heat(table: Mapping[str, Any], view: str, n: int, T: int) -> list[dict[str, Any]]:
    """Errors of each layer by cause as shares of the activation's power, with how dark they are.

    Example:
        >>> error_heat({"errors": []}, "propagated", 1, 1)
        []
    """
    rows = [
        row for row in table["errors"] if row["view"] == view and row["n"] == n and row["T"] == T
    ]
    causes = ("clipping", "quantization", "unevenness", "whole")
    shares = [row[cause]["relative"] or 0.0 for row in rows for cause in causes]
    most = max(shares, default=0.0) or 1.0
    return [
        {
            "layer": row["layer"],
            "cells": [
                {
                    "share": row[cause]["relative"],
                    "dark": round(((row[cause]["relative"] or 0.0) / most) ** 0.5, 3),
                }
                for cause in causes
            ],
        }
        for row in rows
    ]


def training_panels(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Loss, and accuracy on validation images, over the epochs.

    Example:
        >>> log = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.4}]
        >>> [name for name, _ in training_panels(log)]
        ['training loss']
    """
    panels = []
    columns = {"train_loss": "training loss", "validation_accuracy": "validation accuracy, %"}
    for key, words in columns.items():
        points = [(row["epoch"], row[key]) for row in log if row.get(key) is not None]
        if len(points) < 2:
            continue
        values = [value for _, value in points]
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1
        first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
        axes = Axes(first, last, low - room, high + room, right=14)
        marks = [item for item in ticks(first, last, 5) if item == int(item)]
        content = [*axes.frame(marks, ticks(low - room, high + room, 4), "epoch", "")]
        content.append(axes.line(points, "s0"))
        content += [
            element(
                "circle",
                element("title", f"epoch {epoch}: {value:.4g}"),
                cx=axes.x(epoch),
                cy=axes.y(value),
                r=2.4,
                class_="dot s0",
            )
            for epoch, value in points
        ]
        label = f"{words} over {len(points)} epochs, from {values[0]:.4g} to {values[-1]:.4g}"
        panels.append((words, drawing(content, label)))
    return panels


def bars(rows: Iterable[tuple[str, Sequence[tuple[str, float]]]], unit: str, label: str) -> Markup:
    """A bar for each row, made of parts; its name above it, its sum at its end.

    Example:
        >>> "1 nJ" in bars([("QANN", [("compute", 1.0)])], "nJ", "energy")
        True
    """
    rows = list(rows)
    most = max((sum(size for _, size in parts) for _, parts in rows), default=1) or 1
    height = len(rows) * 38 + 6
    content = []
    for k, (name, parts) in enumerate(rows):
        y, x = k * 38 + 6, 2.0
        content.append(element("text", name, x=2, y=y + 8, class_="axis"))
        for part, (words, size) in enumerate(parts):
            length = size / most * (WIDTH - 84)
            said = element("title", f"{name}, {words}: {figures(size)} {unit}")
            content.append(
                element(
                    "rect",
                    said,
                    x=x,
                    y=y + 13,
                    width=max(length, 0.4),
                    height=14,
                    class_=f"bar p{part}",
                )
            )
            x += length
        whole = f"{figures(sum(size for _, size in parts))} {unit}"
        content.append(element("text", whole, x=x + 5, y=y + 24, class_="axis"))
    return drawing(content, label, WIDTH, height)
