"""The file of `nir`: one time step as integrate-and-fire neurons with scalar thresholds.

Weights are whole numbers. A layer of n thresholds is n populations of `IF` neurons with threshold
1/2, each behind a 1x1 convolution with bias 1 - t, t its whole-number thresholds by channel: so
v = u + 1 - t is 1 or more exactly where u reaches t. Edges that meet are summed, so all n lead into
the next weight. A level below 0 is said by neurons that fire where u does not reach their
threshold, and count as -1. A maximum of levels is one neuron for each threshold, fed by all of its
window. What a graph reads are levels of the image; logits are a product and a sum of float32.

Value 7 of the tables is the node value_7 (and value_7_minus, added), or, of levels, nodes
value_7_up_1 ... minus nodes value_7_down_1 ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError, Fault
from ...integer_engine.terms import FLOAT32_WHOLE
from ..forms.float32_sums import furthest, sum_fits
from ..forms.nodes import IntegerForm, Node, Value

INPUT, OUTPUT = "input", "output"
LARGEST_GRAPH = 2**20  # nodes times edges: some 15 seconds of reading and running


class NoForm(Exception):
    """Why a node has no exact form in NIR."""


@dataclass(frozen=True)
class Signal:
    """Nodes whose sum is a value: ``plus`` counted once, ``minus`` taken off. ``places``: of
    levels, those of ``plus`` in order of their thresholds."""

    plus: tuple[str, ...]
    minus: tuple[str, ...] = ()
    are_levels: bool = False


def nir_refused(form: IntegerForm) -> list[Fault]:
    """What whole-number weights and IF neurons have no exact form for, all of it."""
    graph, faults = _Graph(form, dry=True), []
    for node in form.nodes:
        try:
            graph.write(node)
        except NoForm as fact:
            faults.append(Fault(node.name, node.op, str(fact)))
            graph.signals[node.out] = Signal((INPUT,))
    nodes, edges = graph.counts
    if nodes * edges > LARGEST_GRAPH:
        hint = "nir looks at every node for every edge, for minutes and more: use fewer act_bits"
        faults.append(Fault("the network", f"{nodes:,} nodes and {edges:,} edges", hint))
    return faults


def write_nir(form: IntegerForm, path: Path) -> None:
    """Write the graph, its types checked by nir itself."""
    import nir

    graph = _Graph(form)
    for node in form.nodes:
        graph.write(node)
    encode = form.node("encode")
    metadata = {
        "writer": "mt_convert",
        "time_steps": form.time_steps,
        "dt": 1.0,
        "image_scale": float(encode.arrays["scale"]),
        "image_low": int(encode.settings["low"]),
        "image_high": int(encode.settings["high"]),
    }
    whole = nir.NIRGraph(nodes=graph.nodes, edges=graph.edges, type_check=True, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    nir.write(path, whole)


class _Graph:
    """Nodes and edges so far. ``dry``: nothing is made, only looked at."""

    def __init__(self, form: IntegerForm, dry: bool = False) -> None:
        self.form, self.dry = form, dry
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.signals: dict[int, Signal] = {}
        self.counts = (0, 0)

    def write(self, node: Node) -> None:
        """One node of the form."""
        self.signals[node.out] = _WRITERS[node.op](self, node)

    def add(self, name: str, make: Callable[[], Any], sources: tuple[str, ...]) -> str:
        """A node, fed by the sum of others."""
        nodes, edges = self.counts
        self.counts = nodes + 1, edges + len(sources)
        if not self.dry:
            self.nodes[name] = make()
            self.edges += [(source, name) for source in sources]
        return name

    def shape(self, index: int) -> tuple[int, ...]:
        return self.form.values[index].shape

    def linear(
        self, node: Node, make: Callable[[float], Any], source: Signal, name: str = ""
    ) -> Signal:
        """A linear operator on a signed sum: once on what counts, once negated on the rest."""
        name, made = name or f"value_{node.out}", []
        if source.plus or not source.minus:
            made.append(self.add(name, lambda: make(1.0), source.plus))
        if source.minus:
            made.append(self.add(f"{name}_minus", lambda: make(-1.0), source.minus))
        return Signal(tuple(made))


def _encode(graph: _Graph, node: Node) -> Signal:
    import nir

    shape = np.array(graph.shape(node.out))
    return Signal((graph.add(INPUT, lambda: nir.Input(input_type=shape), ()),))


def _conv(graph: _Graph, node: Node) -> Signal:
    value = graph.form.values[node.inputs[0]]
    if furthest(graph.form, node) >= FLOAT32_WHOLE:
        raise NoForm("sums beyond 2^24, which float32 does not hold: use fewer bits")
    weight, groups = node.arrays["weight"], node.settings["groups"]
    dense = _dense(weight, groups)
    source = graph.signals[node.inputs[0]]
    make = _convolution(node, value, graph.shape(node.out), dense)
    return graph.linear(node, make, source)


def _dense(weight: Tensor, groups: int) -> Tensor:
    """The weight of a grouped convolution without groups."""
    if groups == 1:
        return weight
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], columns * groups, *weight.shape[2:])
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        dense[own, group * columns : (group + 1) * columns] = weight[own]
    return dense


def _convolution(
    node: Node, value: Value, shape: tuple[int, ...], weight: Tensor
) -> Callable[[float], Any]:
    """How to make a convolution of a sign."""
    settings, space = node.settings, value.shape[1:]
    if len(space) not in (1, 2):
        raise NoForm(f"{len(space)} axes of space: NIR has convolutions of one and two")
    columns = (settings[name] for name in ("kernel", "stride", "padding", "dilation"))
    for size, out, kernel, stride, padding, dilation in zip(
        space, shape[1:], *columns, strict=True
    ):
        fit = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
        if fit != out:
            raise NoForm("more zeros behind an axis than in front of it")
    if len({*settings["kernel"]}) > 1:
        raise NoForm("a kernel that is not square: nir takes its first side for both")
    return _sized(weight, space, settings["stride"], settings["padding"], settings["dilation"])


def _sized(
    weight: Tensor, space: tuple[int, ...], stride: Any, padding: Any, dilation: Any
) -> Callable[[float], Any]:
    """A convolution with its geometry, without a bias."""

    def make(sign: float, bias: np.ndarray | None = None) -> Any:
        import nir

        numbers = (weight.float() * sign).numpy()
        zeros = np.zeros(len(numbers), np.float32) if bias is None else bias
        if len(space) == 1:
            geometry = [int(one[0]) for one in (stride, padding, dilation)]
            return nir.Conv1d(space[0], numbers, *geometry, 1, zeros)
        pairs = [(int(one[0]), int(one[1])) for one in (stride, padding, dilation)]
        return nir.Conv2d((space[0], space[1]), numbers, *pairs, 1, zeros)

    return make


def _linear(graph: _Graph, node: Node) -> Signal:
    if len(graph.shape(node.out)) != 1:
        raise NoForm("a linear layer over one of several axes")
    if furthest(graph.form, node) >= FLOAT32_WHOLE:
        raise NoForm("sums beyond 2^24, which float32 does not hold: use fewer bits")
    weight = node.arrays["weight"].float()

    def make(sign: float) -> Any:
        import nir

        return nir.Linear((weight * sign).numpy())

    return graph.linear(node, make, graph.signals[node.inputs[0]])


def _diagonal(
    graph: _Graph, shape: tuple[int, ...], factors: Tensor, bias: Tensor | None = None
) -> Callable[[float], Any]:
    """Each channel times its factor, plus its bias; the bias keeps its sign."""
    matrix = torch.diag(factors.float().expand(shape[0]))

    def make(sign: float) -> Any:
        import nir

        added = None if bias is None else bias.float().expand(shape[0]).numpy().copy()
        if len(shape) == 1:
            weight = (matrix * sign).numpy()
            return nir.Linear(weight) if added is None else nir.Affine(weight, added)
        space, axes = shape[1:], len(shape) - 1
        one, none = [1] * axes, [0] * axes
        wide = matrix.reshape(*matrix.shape, *one)
        made: Any = _sized(wide, space, one, none, one)
        return made(sign, added)

    if len(shape) not in (1, 2, 3):
        raise NoForm(f"{len(shape)} axes: NIR has convolutions of one and two")
    return make


def _rows(place: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The row of thresholds of each channel."""
    if place.numel() == 1:
        return place.reshape(1).expand(shape[0]).long()
    if place.dim() and place.numel() == place.shape[0] == shape[0]:
        return place.flatten().long()
    raise NoForm("thresholds that differ within a channel")


def _fire(graph: _Graph, node: Node) -> Signal:
    """Populations of neurons, one for each threshold."""
    arrays, shape = node.arrays, graph.shape(node.out)
    if "levels" in arrays:
        raise NoForm("a sum of two accumulators: put an activation on the shortcut")
    if _reach(graph.form, node) >= FLOAT32_WHOLE:
        raise NoForm("sums beyond 2^24, which float32 does not hold: use fewer bits")
    rows, first = _rows(arrays["place"], shape), int(node.settings["first"])
    thresholds = arrays["thresholds"][rows]
    count = thresholds.shape[1]
    below = min(max(0, -first), count)
    if first > 0 or -first > count:
        raise NoForm(f"levels from {first} to {first + count}, without 0")
    name, inputs = f"value_{node.out}", [graph.signals[index] for index in node.inputs]
    factors = [arrays[f"factor_{index}"][rows] for index in range(len(inputs))]
    sides: dict[int, list[str]] = {}
    for sign in (1, -1) if below else (1,):
        leaf = f"{name}_side" if sign > 0 else f"{name}_negated_side"
        made: list[str] = []
        for index, (source, factor) in enumerate(zip(inputs, factors, strict=True)):
            rest = Signal((), source.minus) if index == 0 else source
            if rest.plus or rest.minus:
                make = _diagonal(graph, shape, factor * sign)
                made += graph.linear(node, make, rest, f"{leaf}_{index}").plus
        sides[sign] = made

    def neuron(leaf: str, sign: int, bias: Tensor) -> str:
        import nir

        drive = f"{leaf}_drive"
        make = _diagonal(graph, shape, factors[0] * sign, bias)
        graph.add(drive, lambda: make(1.0), inputs[0].plus)
        whole = np.ones(shape, np.float32)
        return graph.add(leaf, lambda: nir.IF(whole, whole / 2), (drive, *sides[sign]))

    down = [
        neuron(f"{name}_down_{below - k}", -1, thresholds[:, k]) for k in reversed(range(below))
    ]
    up = [
        neuron(f"{name}_up_{k - below + 1}", 1, 1 - thresholds[:, k]) for k in range(below, count)
    ]
    falls = arrays["falls"][rows].unbind(1) if "falls" in arrays else ()
    for k, fall in enumerate(falls, start=below + 1):  # where the level of a function falls
        down.append(neuron(f"{name}_down_{k}", 1, 1 - fall))
    return Signal(tuple(up), tuple(down), True)


def _reach(form: IntegerForm, node: Node) -> int:
    """The largest sum that a layer of neurons makes of its inputs and a threshold."""
    rows = [
        node.arrays[f"factor_{index}"].long().abs()
        * max(-form.values[value].low, form.values[value].high)
        for index, value in enumerate(node.inputs)
    ]
    both = [node.arrays[side] for side in ("thresholds", "falls") if side in node.arrays]
    largest = torch.cat(both, 1).long().abs().amax(1) + 1
    return int((sum(rows) + largest).max())


def _max_pool(graph: _Graph, node: Node) -> Signal:
    """A neuron for each threshold, which fires where one of its window did."""
    import nir

    source, value = graph.signals[node.inputs[0]], graph.form.values[node.inputs[0]]
    if not source.are_levels or source.minus:
        raise NoForm("a maximum of other numbers than levels from 0 up")
    shape, channels = graph.shape(node.out), value.shape[0]
    ones = torch.ones(channels, 1, *node.settings["kernel"])
    make = _convolution(node, value, shape, _dense(ones, channels))
    whole, made = np.ones(shape, np.float32), []
    for k, spikes in enumerate(source.plus, start=1):
        leaf = f"value_{node.out}_up_{k}"
        drive = graph.add(f"{leaf}_drive", lambda: make(1.0), (spikes,))
        made.append(graph.add(leaf, lambda: nir.IF(whole, whole / 2), (drive,)))
    return Signal(tuple(made), (), True)


def _sum_pool(graph: _Graph, node: Node) -> Signal:
    if not sum_fits(graph.form, node):
        raise NoForm("sums beyond 2^24, which float32 does not hold: use a smaller pool")
    value = graph.form.values[node.inputs[0]]
    ones = torch.ones(value.shape[0], 1, *node.settings["kernel"])
    dense = _dense(ones, value.shape[0])
    make = _convolution(node, value, graph.shape(node.out), dense)
    return graph.linear(node, make, graph.signals[node.inputs[0]])


def _sum(graph: _Graph, node: Node) -> Signal:
    """A sum over all of space, as one window."""
    value, shape = graph.form.values[node.inputs[0]], graph.shape(node.out)
    space, axes = value.shape[1:], list(node.settings["axes"])
    square = len(space) in (1, 2) and len({*space}) == 1
    if axes != list(range(2, 2 + len(space))) or not square or not sum_fits(graph.form, node):
        raise NoForm("a sum over other axes than all of a square space, or beyond 2^24")
    dense = _dense(torch.ones(value.shape[0], 1, *space), value.shape[0])
    one, none = [1] * len(space), [0] * len(space)
    source, flat = graph.signals[node.inputs[0]], len(shape) == 1
    name = f"value_{node.out}_window" if flat else ""
    summed = graph.linear(node, _sized(dense, space, one, none, one), source, name)
    return _flatten(graph, node, summed, (value.shape[0], *one)) if flat else summed


def _reshape(graph: _Graph, node: Node) -> Signal:
    shape, source = graph.shape(node.inputs[0]), graph.signals[node.inputs[0]]
    if shape == graph.shape(node.out):
        return source
    if len(graph.shape(node.out)) != 1:
        raise NoForm("another shape than all axes in one")
    return _flatten(graph, node, source, shape)


def _flatten(graph: _Graph, node: Node, source: Signal, shape: tuple[int, ...]) -> Signal:
    def make() -> Any:
        import nir

        return nir.Flatten(input_type=np.array(shape), start_dim=0, end_dim=-1)

    name, plus, minus = f"value_{node.out}", [], []
    if source.plus or not source.minus:
        plus.append(graph.add(name, make, source.plus))
    if source.minus:
        minus.append(graph.add(f"{name}_minus", make, source.minus))
    return Signal(tuple(plus), tuple(minus))


def _scale(graph: _Graph, node: Node) -> Signal:
    factor, shape = node.arrays["factor"], graph.shape(node.out)
    if factor.numel() != 1 and not (factor.dim() and factor.numel() == factor.shape[0] == shape[0]):
        raise NoForm("factors that differ within a channel")
    if not sum_fits(graph.form, node):
        raise NoForm("numbers beyond 2^24, which float32 does not hold: use fewer bits")
    make = _diagonal(graph, shape, factor.flatten())
    return graph.linear(node, make, graph.signals[node.inputs[0]])


def _read_out(graph: _Graph, node: Node) -> Signal:
    """A product, rounded, and then a sum: two nodes, so that no reader makes one of them."""
    import nir

    value, arrays = graph.form.values[node.inputs[0]], node.arrays
    if len(node.inputs) != 1 or len(value.shape) != 1:
        raise NoForm("logits that are a sum of two, or have several axes")
    source = graph.signals[node.inputs[0]]
    name, multiplier = f"value_{node.out}", arrays["multiplier_0"].flatten()
    if source.minus or len(source.plus) > 1:  # the whole sum before it is rounded
        make = _diagonal(graph, value.shape, torch.ones(1))
        joined = graph.linear(node, make, source, f"{name}_sum")
        if len(joined.plus) > 1:
            both = _diagonal(graph, value.shape, torch.ones(1))
            joined = Signal((graph.add(f"{name}_whole", lambda: both(1.0), joined.plus),))
        source = joined
    make = _diagonal(graph, value.shape, multiplier)
    last = graph.add(f"{name}_product", lambda: make(1.0), source.plus)
    bias = arrays.get("bias", torch.zeros(1)).flatten()
    added = _diagonal(graph, value.shape, torch.ones(1), bias)
    last = graph.add(name, lambda: added(1.0), (last,))
    shape = np.array(value.shape)
    graph.add(OUTPUT, lambda: nir.Output(output_type=shape), (last,))
    return Signal((last,))


def _no_form(graph: _Graph, node: Node) -> Signal:
    raise NoForm("NIR has no such operator")


_WRITERS: Mapping[str, Callable[[_Graph, Node], Signal]] = {
    "encode": _encode,
    "conv": _conv,
    "linear": _linear,
    "gather": _no_form,
    "reshape": _reshape,
    "max_pool": _max_pool,
    "sum_pool": _sum_pool,
    "max": _no_form,
    "sum": _sum,
    "scale": _scale,
    "fire": _fire,
    "read_out": _read_out,
}


def signals_of(form: IntegerForm) -> Mapping[int, Signal]:
    """Which nodes each value is in the file."""
    graph = _Graph(form, dry=True)
    try:
        for node in form.nodes:
            graph.write(node)
    except NoForm as error:
        raise CheckpointError(f"this network has no form in NIR: {error}") from error
    return graph.signals
