"""Pictures of one simulation: spikes, rates, potentials. Each gives a figure of matplotlib, as wide
as a printed column, and writes it where a path is given: PNG, PDF or SVG by its name. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import Fault, SpecError, did_you_mean, near_names
from .pictures import COLUMN, PAGE, draw_grid, make_figure, write

UP, DOWN = "#c2410c", "#1d5fbf"
"""Spikes, and negative ones, as on the pages for a browser."""
NEURONS, ACROSS, MOST = 48, 4, 32
BINS = 40
_SIGNS = LinearSegmentedColormap.from_list("spikes", [DOWN, "white", UP])
_SMALL: dict[str, Any] = {"fontsize": 7}


class Recorded(Protocol):
    """What is drawn of a simulation: a `Run`; ``spikes`` and ``potentials`` are there where it was
    simulated with ``record=True``.

    Shapes: spikes[layer], potentials[layer] [T, batch, ...], in levels.
    """

    @property
    def firing_rates(self) -> Mapping[str, float]:
        """Events per neuron and step of each layer."""

    @property
    def spikes(self) -> Mapping[str, Any] | None:
        """Levels emitted in each step."""

    @property
    def potentials(self) -> Mapping[str, Any] | None:
        """v behind each step."""


def raster(
    run: Recorded,
    layer: str,
    path: str | Path | None = None,
    *,
    image: int = 0,
    neurons: int = NEURONS,
) -> Figure:
    """Draw the spikes of one image in one layer: a line a neuron, a column a step; positive and
    negative in two colours, the darker the more at once.

    Of a larger layer ``neurons`` are shown: those that fire, evenly over the layer, then silent
    ones.

    Raises:
        SpecError: not recorded; a layer, an image or a number of neurons that is not there.
        OutputError: the file cannot be written.

    Example:
        >>> from types import SimpleNamespace
        >>> spikes = {"act": np.array([[[0, 1, 0]], [[2, -1, 0]]])}
        >>> figure = raster(SimpleNamespace(spikes=spikes), "act", neurons=2)
        >>> figure.axes[0].images[0].get_array().tolist()
        [[0, 2], [1, -1]]
    """
    emitted = _of_image(_record_of(run, "spikes"), layer, image)
    if neurons < 1:
        raise SpecError(f"neurons={neurons}: allowed are whole numbers from 1")
    chosen = _choose(emitted, neurons)
    shown = emitted[:, chosen].T
    most = max(1, np.abs(shown).max(initial=0))
    size = (COLUMN, 0.9 + min(4.2, max(0.5, 0.07 * len(chosen))))
    figure, (axes,) = make_figure(size, (1, 1))
    picture = axes.imshow(
        shown, cmap=_SIGNS, norm=Normalize(-most, most), aspect="auto", interpolation="nearest"
    )
    _steps(axes, len(emitted), centred=True)
    places = np.unique(np.linspace(0, len(chosen) - 1, min(6, len(chosen))).astype(int))
    axes.set_yticks(places, [str(chosen[k]) for k in places])
    axes.set_ylabel("neuron", **_SMALL)
    axes.set_title(
        f"{layer}: {_count(emitted)}, {len(chosen)} of {emitted.shape[1]:,} neurons", fontsize=7
    )
    if most > 1 or shown.min(initial=0) < 0:
        low = -most if shown.min(initial=0) < 0 else 0
        bar = figure.colorbar(picture, ax=axes, pad=0.02, fraction=0.05)
        bar.ax.set_ylim(low, most)
        bar.ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        bar.set_label("levels in a step", **_SMALL)
        bar.ax.tick_params(labelsize=6.5)
    return _finish(figure, path)


def rates(run: Recorded, path: str | Path | None = None) -> Figure:
    """Draw the firing rate of each layer: events per neuron and step, over all images.

    Raises:
        SpecError: no layers of neurons.
        OutputError: the file cannot be written.

    Example:
        >>> from types import SimpleNamespace
        >>> figure = rates(SimpleNamespace(firing_rates={"a": 0.5, "b": 0.25}))
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [0.5, 0.25]
    """
    if not run.firing_rates:
        raise SpecError("this network has no layers of neurons to draw")
    names, values = list(run.firing_rates), list(run.firing_rates.values())
    figure, (axes,) = make_figure((COLUMN, 0.8 + 0.15 * len(names)), (1, 1))
    axes.barh(range(len(names)), values, 0.7, color=UP)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.3g}", va="center", fontsize=6.5)
    axes.set_xlim(0, 1.18 * (max(values) or 1))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # in order of execution, from above
    axes.set_xlabel("events per neuron and step", **_SMALL)
    draw_grid(axes)
    return _finish(figure, path)


def histogram(
    run: Recorded, layers: str | Sequence[str] | None = None, path: str | Path | None = None
) -> Figure:
    """Draw how large potentials are behind the last step, over all neurons and images: one panel a
    layer. The band is where a potential rests, from 0 to the first threshold.

    Raises:
        SpecError: not recorded; a layer that is not there; more layers than panels can show.
        OutputError: the file cannot be written.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(potentials={"act": np.array([[[0.25, 0.75, 3.0]]])})
        >>> figure = histogram(run, "act")
        >>> figure.axes[0].get_title()
        'act: 66.7 % at rest'
    """
    potentials = _record_of(run, "potentials")
    names = list(potentials) if layers is None else [layers] if isinstance(layers, str) else layers
    if not 0 < len(names) <= MOST:
        hint = f"allowed are 1 to {MOST}: name some, histogram(run, ['...'])"
        raise SpecError(f"{len(names)} layers in one picture; {hint}")
    across = min(ACROSS, len(names))
    down = -(-len(names) // across)
    width = COLUMN if across <= 2 else PAGE
    figure, panels = make_figure((width, 0.3 + 1.35 * down), (down, across), sharey=True)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        values = np.asarray(_layer(potentials, name)[-1], dtype=float).ravel()
        low, high = _ends(values)
        shares = np.full(len(values), 100 / max(1, len(values)))
        clipped = values.clip(low, high)  # the outer bins hold all that lies beyond
        axes.axvspan(0, 1, color="0.9", zorder=0)
        axes.hist(clipped, BINS, range=(low, high), weights=shares, color=UP, zorder=2)
        rest = ((values >= 0) & (values < 1)).mean() if len(values) else 0
        axes.set_title(f"{name}: {100 * rest:.1f} % at rest", fontsize=7)
        axes.tick_params(labelsize=6.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for place, axes in enumerate(panels[: len(names)]):
        if place % across == 0:
            axes.set_ylabel("% of neurons", **_SMALL)
        if place + across >= len(names):
            axes.set_xlabel("potential behind the last step, levels", fontsize=6.5)
    return _finish(figure, path)


def potential(
    run: Recorded, layer: str, neuron: int, path: str | Path | None = None, *, image: int = 0
) -> Figure:
    """Draw the membrane potential of one neuron over the steps of one image; large dots are steps
    in which it emits, the band is where a potential rests, from 0 to the first threshold.

    Raises:
        SpecError: not recorded; a layer, an image or a neuron that is not there.
        OutputError: the file cannot be written.

    Example:
        >>> from types import SimpleNamespace
        >>> traces = {"act": np.array([[[0.5, 1.5]], [[0.75, 0.5]]])}
        >>> run = SimpleNamespace(potentials=traces, spikes={"act": np.array([[[0, 0]], [[0, 1]]])})
        >>> potential(run, "act", 1).axes[0].lines[0].get_ydata().tolist()
        [1.5, 0.5]
    """
    left = _of_image(_record_of(run, "potentials"), layer, image)
    emitted = _of_image(_record_of(run, "spikes"), layer, image)
    if not 0 <= neuron < left.shape[1]:
        where = f"{layer} has neurons 0 to {left.shape[1] - 1}"
        raise SpecError(f"neuron {neuron} is not there: {where}")
    v, out = left[:, neuron], emitted[:, neuron]
    steps = np.arange(1, len(v) + 1)
    figure, (axes,) = make_figure((COLUMN, 1.9), (1, 1))
    axes.axhspan(0, 1, color="0.9", zorder=0)
    axes.plot(steps, v, "-", color="0.25", linewidth=1)
    for colour, sign, name in ((UP, out > 0, "spikes"), (DOWN, out < 0, "negative spikes")):
        if sign.any():
            axes.plot(steps[sign], v[sign], "o", color=colour, markersize=5, label=name)
    if (out != 0).any():
        axes.legend(loc="best", fontsize=6.5, frameon=False)
    _steps(axes, len(v), centred=False)
    axes.set_ylabel("potential behind\nthe step, levels", **_SMALL)
    axes.set_title(f"neuron {neuron} of {layer}, image {image}", fontsize=7)
    draw_grid(axes)
    return _finish(figure, path)


# ------------------------------------------------------------------------------------------ shared


def _record_of(run: Recorded, name: str) -> Mapping[str, Any]:
    """Spikes or potentials of all layers."""
    recorded: Mapping[str, Any] | None = getattr(run, name, None)
    if recorded is None:
        hint = "simulate(snn, images, time_steps=T, record=True) keeps them"
        raise SpecError(f"this run has no {name} of each step; {hint}")
    return recorded


def _layer(recorded: Mapping[str, Any], name: str) -> np.ndarray:
    """What a layer recorded.

    Shapes: [T, batch, ...].
    """
    if name not in recorded:
        guess = did_you_mean(near_names(name, list(recorded)))
        hint = f"{guess} layers: {', '.join(list(recorded)[:12])}".lstrip()
        raise SpecError("a layer that is not there", [Fault(name, "is no layer of neurons", hint)])
    values = recorded[name]
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values)


def _of_image(recorded: Mapping[str, Any], layer: str, image: int) -> np.ndarray:
    """What one image left in a layer.

    Shapes: [T, neurons].
    """
    values = _layer(recorded, layer)
    batch = values.shape[1]
    if not 0 <= image < batch:
        raise SpecError(f"image {image} is not there: the run has images 0 to {batch - 1}")
    return values[:, image].reshape(len(values), -1)


def _choose(emitted: np.ndarray, count: int) -> np.ndarray:
    """Neurons to show: those that fire, evenly over the layer, then silent ones."""
    fires = (emitted != 0).any(0)
    active = _evenly(np.flatnonzero(fires), count)
    silent = _evenly(np.flatnonzero(~fires), count - len(active))
    return np.sort(np.concatenate([active, silent]))


def _evenly(places: np.ndarray, count: int) -> np.ndarray:
    """So many of them, evenly spaced; all if there are fewer."""
    if len(places) <= count:
        return places
    return places[np.arange(count) * len(places) // max(1, count)]


def _count(emitted: np.ndarray) -> str:
    """What was emitted, in words."""
    up, down = emitted.clip(min=0).sum(), -emitted.clip(max=0).sum()
    return f"{up:,.0f} levels up" + (f", {down:,.0f} down" if down else "")


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis that holds all but a hundredth of the values on each side."""
    if not len(values):
        return -0.5, 1.5
    low, high = np.quantile(values, [0.01, 0.99])
    return min(-0.5, float(low)), max(1.5, float(high))


def _steps(axes: Any, T: int, *, centred: bool) -> None:
    """The axis of time: whole steps from 1."""
    marks = range(0, T, max(1, -(-T // 8)))
    axes.set_xticks([t if centred else t + 1 for t in marks], [str(t + 1) for t in marks])
    axes.set_xlabel("time step", **_SMALL)
    axes.tick_params(labelsize=6.5)


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written where that was asked for."""
    for axes in figure.axes:
        axes.tick_params(labelsize=6.5)
    if path is not None:
        write(figure, path)
    return figure
