"""The quantized and the spiking network side by side, from one layer of neurons to the next.

A layer can then be calibrated on what the layers before it really emit, already calibrated, and the
whole network costs one pass. Kept are, for neurons that later layers still read, the activations of
the one network and the totals behind every step of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.nodes import (
    CONVS,
    NORMS,
    WEIGHTED,
    attribute,
    is_constant,
    layer_nodes,
    layer_of,
    source_of,
)
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..neurons.totals import totals_step
from ..spiking.levels import input_unit, level_at, quantized_activation, window_spec, worth
from ..spiking.model import SpikingModel
from ..spiking.presentation import Presentation
from ..spiking.shapes import images_not_first

Values = dict[fx.Node, Any]
Call = Callable[..., Any]


def channel_axis(
    layers: fx.GraphModule, node: fx.Node, dimensions: int, mixed: Collection[fx.Node]
) -> int:
    """Where the channels of a layer of neurons lie: as the weighted layer or batch norm behind has
    them; last at nodes of ``mixed``, where the images are not alone on the first axis."""
    if node in mixed:
        return dimensions - 1
    queue = list(node.all_input_nodes)
    for item in queue:  # grows: nearest first
        layer = layer_of(layers, item)
        if isinstance(layer, (*CONVS, *NORMS)):
            return 1
        if isinstance(layer, WEIGHTED):
            return dimensions - 1
        if item.op != "placeholder" and not isinstance(layer, MTNeuron):
            queue.extend(other for other in item.all_input_nodes if not is_constant(other))
    return 1


class Lockstep:
    """Both networks on the same batches, up to the layers of neurons already passed.

    ``snn`` may change between layers: a layer's neurons until it is passed, weights until the layer
    that they feed is. Take the layers of ``nodes`` in order: read ``drives`` and ``target``, then
    ``pass_on``.

    Shapes:
        batches of images [batch, channels, height, width]; k numbers them.
    """

    def __init__(
        self,
        snn: SpikingModel,
        reference: SpikingModel,
        batches: Sequence[Tensor],
        time_steps: int,
    ) -> None:
        self.snn, self.reference = snn, reference
        self.batches, self.time_steps = batches, time_steps
        graph = snn.layers.graph
        self.nodes = [node for node, _ in layer_nodes(snn.layers, MTNeuron)]
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._image = next(node for node in graph.nodes if node.op == "placeholder")
        self.between = {node: self._between(node) for node in self.nodes}
        self._sources = {node: self._read_by(self.between[node], node) for node in self.nodes}
        self._activations: list[Values] = [{} for _ in batches]
        self._totals: list[dict[fx.Node, list[Tensor]]] = [{} for _ in batches]
        self._mixed = set(images_not_first(snn.layers))

    # --------------------------------------------------------------------------- one layer's graph

    def neuron(self, node: fx.Node) -> MTNeuron:
        """The layer as it now is."""
        layer = layer_of(self.snn.layers, node)
        assert isinstance(layer, MTNeuron)
        return layer

    def _between(self, node: fx.Node) -> list[fx.Node]:
        """What is computed between the neurons before and this layer, in order."""
        nodes: set[fx.Node] = set()
        stack = list(node.all_input_nodes)
        while stack:
            item = stack.pop()
            if item not in nodes and not self._is_source(item):
                nodes.add(item)
                stack.extend(item.all_input_nodes)
        return sorted(nodes, key=self._place.__getitem__)

    def _is_source(self, node: fx.Node) -> bool:
        """Whether the values of a node are kept: neurons and the image."""
        return node is self._image or isinstance(layer_of(self.snn.layers, node), MTNeuron)

    def _read_by(self, nodes: list[fx.Node], last: fx.Node) -> set[fx.Node]:
        """The sources that nodes, and the last of them, read."""
        read = {item for node in [*nodes, last] for item in node.all_input_nodes}
        return {item for item in read if self._is_source(item)}

    def moments(self, node: fx.Node) -> list[int]:
        """For each step, the step behind which the layer's input is read: always the last where
        layers wait for the whole window, always the first where only the image is read."""
        if self._sources[node] <= {self._image}:
            return [0] * self.time_steps
        if self.snn.whole_window:
            return [self.time_steps - 1] * self.time_steps
        return list(range(self.time_steps))

    def channel_axis(self, node: fx.Node, dimensions: int) -> int:
        """Where the channels of a layer lie: see `channel_axis`."""
        return channel_axis(self.snn.layers, node, dimensions, self._mixed)

    def feature_axes(self, node: fx.Node, dimensions: int, per_neuron: bool) -> list[int]:
        """The axes over which neurons share an initial potential, the images' among them."""
        if per_neuron and node not in self._mixed:
            return [0]
        channels = self.channel_axis(node, dimensions)
        return [axis for axis in range(dimensions) if axis != channels]

    # ---------------------------------------------------------------------------------- its values

    def values(self, node: fx.Node, k: int, moment: int) -> Values:
        """What the sources of a layer have emitted behind a step, in units of the network."""
        values: Values = {}
        for source in self._sources[node]:
            if source is self._image:
                values[source] = self.batches[k]
            else:
                neuron = self.neuron(source)
                step = worth(neuron, self.snn.presentation, moment)
                values[source] = self._totals[k][source][moment].to(step.dtype) * step
        return values

    @torch.no_grad()
    def drives(self, node: fx.Node, k: int) -> list[Tensor]:
        """A layer's input behind each step, in levels, without its offset."""
        inputs: dict[int, Tensor] = {}
        for moment in self.moments(node):
            if moment not in inputs:
                values = self.values(node, k, moment)
                inputs[moment] = run(self.snn.layers, self.between[node], values)[source_of(node)]
        return self.in_levels(node, [inputs[moment] for moment in self.moments(node)])

    def in_levels(self, node: fx.Node, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of a layer behind each step, in units of the network, in levels of that step."""
        neuron, presentation = self.neuron(node), self.snn.presentation
        return [
            level_at(neuron, presentation, t, x / input_unit(neuron, presentation, t))
            for t, x in enumerate(inputs)
        ]

    @torch.no_grad()
    def target(self, node: fx.Node, k: int) -> Tensor:
        """The quantized network's activation, from its own activations before."""
        values: Values = {item: self._activations[k].get(item) for item in self._sources[node]}
        if self._image in values:
            values[self._image] = self.batches[k]
        layers = self.reference.layers
        neuron = layers.get_submodule(str(node.target))
        assert isinstance(neuron, MTNeuron)
        return quantized_activation(
            neuron, run(layers, self.between[node], values)[source_of(node)]
        )

    @torch.no_grad()
    def pass_on(
        self,
        node: fx.Node,
        targets: Sequence[Tensor],
        drives: Sequence[Sequence[Tensor]] | None = None,
    ) -> list[Tensor]:
        """Leave a layer behind: keep what both networks give there for later layers, and forget
        what nothing reads any more. Drives, where the caller has them, spare computing them.

        Returns: for each batch what has been emitted after T steps, in units of the network.
        """
        neuron, presentation = self.neuron(node), self.snn.presentation
        last = worth(neuron, presentation, self.time_steps - 1)
        emitted = []
        for k, target in enumerate(targets):
            of_batch = self.drives(node, k) if drives is None else drives[k]
            totals = emissions(neuron, of_batch, presentation)
            emitted.append(totals[-1] * last)
            self._activations[k][node] = target
            self._totals[k][node] = [_smallest(total) for total in totals]
        self._forget(node)
        return emitted

    def _forget(self, passed: fx.Node) -> None:
        """Drop what no layer behind ``passed`` reads."""
        later = self.nodes[self.nodes.index(passed) + 1 :]
        needed = {source for node in later for source in self._sources[node]}
        for kept in (*self._activations, *self._totals):
            for node in [node for node in kept if node not in needed]:
                del kept[node]


def run(
    layers: fx.GraphModule,
    nodes: Sequence[fx.Node],
    values: Values,
    calls: Mapping[fx.Node, Call] | None = None,
) -> Values:
    """Compute nodes in order into ``values``, which holds what they read; ``calls`` take the place
    of single layers.

    Example:
        >>> from torch import nn
        >>> from ..graph.tracing.trace import trace
        >>> layers = trace(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.zeros(2, 1, 2, 2))
        >>> image, conv, _ = layers.graph.nodes
        >>> run(layers, [conv], {image: torch.ones(1, 1, 2, 2)}, {conv: torch.neg})[conv].sum()
        tensor(-4.)
    """
    for node in nodes:
        if node in values:
            continue
        if node.op == "get_attr":
            values[node] = attribute(layers, str(node.target))
            continue
        args: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        call: Any = (calls or {}).get(node) or layer_of(layers, node) or node.target
        values[node] = call(*args, **kwargs)
    return values


def emissions(
    neuron: MTNeuron, drives: Sequence[Tensor], presentation: Presentation
) -> list[Tensor]:
    """A layer's totals behind each step, in levels, from its input without offset.

    Shapes: each as the drives. Units: levels of each step's window.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> from ..neurons.spec import NeuronSpec
        >>> neuron = MTNeuron(NeuronSpec(Uniform(2), bounds=(0, 15)), 1.0, offset=torch.tensor(0.5))
        >>> drives = [torch.tensor([1.25]), torch.tensor([3.0])]
        >>> [total.tolist() for total in emissions(neuron, drives, Presentation.ONCE)]
        [[2.0], [4.0]]
    """
    totals: list[Tensor] = []
    for t, drive in enumerate(drives):
        y = drive if neuron.offset is None else drive + neuron.offset
        before = totals[-1] if totals else torch.zeros_like(y)
        totals.append(totals_step(y, before, window_spec(neuron.spec, presentation, t)))
    return totals


def soft_step(y: Tensor, total: Tensor, spec: NeuronSpec) -> Tensor:
    """`totals_step` of an integer ladder, its value exact, with a gradient of 1 straight through
    the rounding: to y where y decided the total, to the total before where the ladder's reach or
    its direction did, to neither where the bounds did; each half a level further out.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> y = torch.tensor([0.75, 2.25, 8.75, 99.0], requires_grad=True)
        >>> total = soft_step(y, torch.tensor([0.0, 3.0, 8.0, 8.0]), NeuronSpec(Uniform(2)))
        >>> total.sum().backward()
        >>> total.tolist(), y.grad.tolist()
        ([1.0, 3.0, 9.0, 10.0], [1.0, 0.0, 1.0, 0.0])
    """
    (low, high), reach = spec.limits, spec.ladder.reach
    with torch.no_grad():
        exact = totals_step(y, total, spec)
        bounded = y.clamp(low - 0.5, high + 0.5)
        gap = bounded - total
        decides = (gap >= (-reach if spec.signed else 0) - 0.5) & (gap <= reach + 0.5)
    soft = torch.where(decides, torch.where(y == bounded, y, bounded), total)
    return exact + (soft - soft.detach())


def with_offset(neuron: MTNeuron, offset: Tensor | None) -> MTNeuron:
    """The same layer with another offset."""
    return neuron.with_(offset=offset)


def _smallest(total: Tensor) -> Tensor:
    """Whole numbers in as few bytes as hold them."""
    if not total.numel() or float(total.abs().max()) < 2**15:
        return total.to(torch.int16)
    return total.to(torch.int32)
