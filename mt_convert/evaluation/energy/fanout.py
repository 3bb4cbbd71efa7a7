"""Where events arrive, and how many additions one event of each neuron causes there.

Beside the values of one image stands the number of events at each entry of each value:

    movement            events move, and are copied, like the numbers they stand for: exactly
    sums and averages   merge nothing: every event that enters is carried on, an average's 1/k is
                        folded into the weights behind it, and windows that overlap copy events
    a maximum           is a source of its own: the change of its output, in levels of the neuron
                        that it shows, is counted as that neuron's ladder counts (`pick_maximum`)
    a weighted layer    an event causes one addition for each connection of the entry at which it
                        arrives: fewer at a border, none where a stride leaves it out
    a product of two    an event meets the running total of the other side: one addition for each
    activations         product that its entry takes part in

All of these but the maximum are linear in the events, so one reverse pass through each gives the
additions per event of every neuron. A zero weight is a connection like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from ...graph.nodes import WEIGHTED
from ...graph.operations import Operation, Operations
from ...graph.rules import OperatorKind
from ...graph.signals import Signal
from ...neurons.layer import MTNeuron
from .bits import FLOAT_BITS, level_bits, weight_bits
from .event_sums import PASSING_ON, SCALINGS, connections
from .macs import MacRow, count_macs


@dataclass(frozen=True)
class Fanout:
    """One weighted layer or product, and the additions that one event of each source causes in it.

    ``bits``: of its weights and of its input, or of the wider and the other side of a product; of
    a sum, those of its widest summand; 32 for floats.
    ``changes``: whether its input can change from step to step. ``additions`` is None where it is
    not fed by spikes alone, or where events cannot be followed to it.

    Shapes: additions[source], that of the source's value for one image; float64 whole numbers.
    """

    row: MacRow
    bits: tuple[int, int]
    changes: bool
    additions: Mapping[fx.Node, Tensor] | None


@dataclass(frozen=True)
class Paths:
    """The way of all events through a network.

    ``shows``: of each layer of neurons, and of each maximum of what neurons emit, whose emission
        its entries show: k for ``neurons[k - 1]``, 0 for padding. These are the sources of events.
    ``feeders``: the layers of neurons that each source depends on.
    ``lost``: values of spikes whose events cannot be followed.

    Shapes: shows[source], that of its value for one image.
    """

    neurons: tuple[fx.Node, ...]
    shows: Mapping[fx.Node, Tensor]
    feeders: Mapping[fx.Node, tuple[fx.Node, ...]]
    fanouts: Mapping[fx.Node, Fanout]
    operations: Operations
    lost: frozenset[fx.Node]


class Followed(Protocol):
    """What events are followed through: a converted network, or one from scratch.

    Images whose signal is spikes, as Poisson coding draws them, are a source of events too.
    """

    @property
    def layers(self) -> fx.GraphModule:
        """The graph."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""

    @property
    def operations(self) -> Operations:
        """A row for each node."""


def event_paths(
    snn: Followed,
    *,
    zero_weights: bool = True,
    image_changes: bool = False,
    running: bool = True,
) -> Paths:
    """Follow the events of every layer of neurons to what they reach, over weights of 0 too or not.

    ``image_changes``: other images in every step. ``running``: an event meets the running total of
    the other side of a product; where it meets one step alone, products are not followed.

    Example:
        >>> from torch import nn
        >>> from ...spiking.convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3, padding=1))
        >>> qann = quantize(net, QuantSpec(input_bits=None), calibration=torch.randn(4, 1, 4, 4))
        >>> (fanout,) = event_paths(convert(qann)).fanouts.values()
        >>> (additions,) = fanout.additions.values()
        >>> [[int(number) for number in row] for row in additions[0, 0, :2]]
        [[8, 12, 12, 8], [12, 18, 18, 12]]
    """
    tensors = list(snn.layers.state_dict().values())
    example = next((item for item in tensors if item.is_floating_point()), torch.empty(0))
    walk = _Walk(snn, zero_weights, image_changes, running)
    with torch.inference_mode(False), torch.no_grad():
        walk.run(torch.zeros(1, *snn.image_shape, dtype=example.dtype, device=example.device))
    return Paths(
        neurons=tuple(walk.neurons),
        shows=walk.shows,
        feeders=walk.feeders,
        fanouts=walk.fanouts,
        operations=walk.operations,
        lost=frozenset(walk.lost),
    )


def pick_maximum(operations: Operations, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Any:
    """What a maximum gives, and the movements in front of it, from values of layers of neurons.

    Example:
        >>> from torch import nn
        >>> from ...graph.operations import operations
        >>> from ...graph.tracing.trace import trace
        >>> layers = trace(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), torch.zeros(2, 1, 2, 2))
        >>> _, relu, maximum, _ = layers.graph.nodes
        >>> values = {relu: torch.arange(4.0).reshape(1, 1, 2, 2)}
        >>> pick_maximum(operations(layers), maximum, values).item()
        3.0
    """
    if node in values:
        return values[node]
    args: Any
    args, kwargs = fx.map_arg(
        (node.args, node.kwargs), lambda item: pick_maximum(operations, item, values)
    )
    return operations[node].call(*args, **kwargs)


class _Walk(fx.Interpreter):
    """The run on one image, and the events beside it."""

    def __init__(
        self, snn: Followed, zero_weights: bool, image_changes: bool, running: bool
    ) -> None:
        super().__init__(snn.layers)
        self.zero_weights, self.image_changes, self.running = zero_weights, image_changes, running
        self.operations = snn.operations
        self.macs = count_macs(snn.layers, self.operations)
        self.neurons: list[fx.Node] = []
        self.shows: dict[fx.Node, Tensor] = {}
        self.feeders: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self.events: dict[fx.Node, Any] = {}
        self.bits: dict[fx.Node, int] = {}
        self.changing: set[fx.Node] = set()
        self.fanouts: dict[fx.Node, Fanout] = {}
        self.lost: set[fx.Node] = set()

    def run_node(self, node: fx.Node) -> Any:
        row = self.operations[node]
        if isinstance(row.layer, MTNeuron):
            value = self.fetch_args_kwargs_from_env(node)[0][0]
        else:
            value = super().run_node(node)
        if node.op == "placeholder":
            self.bits[node] = FLOAT_BITS
            if self.image_changes:
                self.changing.add(node)
            if row.signal is Signal.SPIKES:
                self._emits(node, value)
        elif node.op != "output" and not row.constant:
            with torch.enable_grad():
                self._follow(row, value)
        return value

    def _follow(self, row: Operation, value: Any) -> None:
        """Note what becomes of the events that arrive at one node."""
        node, inputs = row.node, row.inputs
        assert row.rule is not None, "what has no rule is not converted"
        if isinstance(row.layer, MTNeuron) or self.changing.intersection(inputs):
            self.changing.add(node)
        passes = row.kind in (OperatorKind.MOVE, OperatorKind.LINEAR) or row.rule.selects
        widest = max(self.bits[item] for item in inputs) if passes else FLOAT_BITS
        self.bits[node] = level_bits(row.layer) or widest
        if node in self.macs:
            self.fanouts[node] = self._fanout(row)
        if row.signal is not Signal.SPIKES:
            return
        if isinstance(row.layer, MTNeuron):
            self._emits(node, value)
        elif not all(item in self.events for item in inputs):
            self.lost.add(node)
        elif row.rule.selects:
            self._maximum(node)
        elif (events := self._pass_on(row)) is not None:
            self.events[node] = events
        else:
            self.lost.add(node)

    def _emits(self, node: fx.Node, value: Tensor) -> None:
        """A layer of neurons, or images of spikes."""
        self.neurons.append(node)
        shows = torch.full(value.shape, len(self.neurons), device=value.device)
        self._source(node, shows, (node,))

    def _source(self, node: fx.Node, shows: Tensor, feeders: tuple[fx.Node, ...]) -> None:
        """A value whose events are counted while the network runs."""
        leaf = torch.zeros(shows.shape, dtype=torch.float64, device=shows.device)
        self.shows[node], self.feeders[node] = shows, feeders
        self.events[node] = leaf.requires_grad_()

    def _maximum(self, node: fx.Node) -> None:
        """A maximum is followed where each of its entries picks from one layer of neurons: levels
        of two layers cannot be compared."""
        feeders = self._feeders(node)
        numbers = {item: self.shows[item].double() for item in feeders}
        if feeders:
            highest = pick_maximum(self.operations, node, numbers)
            lowest = -pick_maximum(
                self.operations, node, {item: -numbers[item] for item in feeders}
            )
            if torch.equal(highest, lowest):
                self._source(node, highest.long(), feeders)
                return
        self.lost.add(node)

    def _feeders(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The neurons from which a maximum picks; none if anything else than movement, and maxima
        that are followed, is between."""
        sources: dict[fx.Node, None] = {}
        stack = node.all_input_nodes
        while stack:
            item = stack.pop()
            if item in self.feeders:
                sources |= dict.fromkeys(self.feeders[item])
            elif self.operations[item].kind is OperatorKind.MOVE:
                stack += item.all_input_nodes
            else:
                return ()
        return tuple(sources)

    def _pass_on(self, row: Operation) -> Any:
        """The events behind a movement, a sum or an average; None if there is no way to tell."""
        node = row.node
        if row.kind is OperatorKind.LINEAR and node.target in SCALINGS:
            sides = zip(node.args[:2], self._events(node.args[:2]), strict=True)
            return math.prod(
                value if side in self.events else (torch.as_tensor(value) != 0).double()
                for side, value in sides
            )
        operate = PASSING_ON.get(node.target, row.call if row.kind is OperatorKind.MOVE else None)
        args: Any = self._events(node.args)
        return None if operate is None else operate(*args, **self._events(node.kwargs))

    def _events(self, argument: Any) -> Any:
        """An argument with events in place of what neurons emit."""
        return fx.map_arg(
            argument, lambda item: self.events[item] if item in self.events else self.env[item]
        )

    def _fanout(self, row: Operation) -> Fanout:
        """A row of the count, with the additions of one event of each source."""
        if row.layer is not None:
            bits = weight_bits(row.layer), max(self.bits[item] for item in row.inputs)
        else:
            sides: Any = row.node.args[:2]
            first, second = (self.bits.get(item, FLOAT_BITS) for item in sides)
            bits = max(first, second), min(first, second)
        additions = None
        if row.fed_by is Signal.SPIKES and all(item in self.events for item in row.inputs):
            total = self._additions(row)
            if total is not None:
                leaves = [self.events[source] for source in self.shows]
                counts = torch.autograd.grad(total, leaves, allow_unused=True)
                pairs = zip(self.shows, counts, strict=True)
                additions = {item: count.round() for item, count in pairs if count is not None}
        changes = bool(self.changing.intersection(row.inputs))
        return Fanout(self.macs[row.node], bits, changes, additions)

    def _additions(self, row: Operation) -> Tensor | None:
        """The additions that all arriving events cause in a layer or product, linear in them."""
        node, layer = row.node, row.layer
        sides: Any = node.args[:2]
        if isinstance(layer, WEIGHTED):
            events = self.events[sides[0]].double()
            return connections(layer, events, zero_weights=self.zero_weights)
        if layer is not None or not self.running or not set(row.inputs) <= set(sides):
            return None
        total: Any = 0
        rest, kwargs = self._doubles(node.args[2:]), self._doubles(node.kwargs)
        for place, item in enumerate(sides):
            if item in self.events:
                factors = [torch.ones_like(self.env[side]).double() for side in sides]
                factors[place] = self.events[item].double()
                total = total + row.call(*factors, *rest, **kwargs).sum()
        return total

    def _doubles(self, argument: Any) -> Any:
        """An argument, its tensors (a bias) in float64."""
        values = fx.map_arg(argument, self.env.__getitem__)
        return tree_map_only(Tensor, Tensor.double, values)
