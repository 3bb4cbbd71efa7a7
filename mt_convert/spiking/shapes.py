"""The shapes that values of a converted network have, inferred without computing any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..graph.float32 import network_dtype
from ..graph.nodes import image_shape_of, layer_nodes, layer_of
from ..neurons.layer import MTNeuron
from ..system.devices import device_of


class ShapeRun(fx.Interpreter):
    """Runs a graph on shapes alone; neurons keep the shape of their input.

    Example:
        >>> from torch import nn
        >>> from ..graph.tracing.trace import trace
        >>> run = ShapeRun(trace(nn.Sequential(nn.Conv2d(1, 4, 3)), torch.zeros(2, 1, 4, 4)))
        >>> run.infer(batch=5)
        >>> [tuple(shape) for shape in run.shapes.values()]
        [(5, 1, 4, 4), (5, 4, 2, 2)]
    """

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__(layers)
        self.layers = layers
        self.shapes: dict[fx.Node, torch.Size] = {}

    def infer(self, batch: int) -> None:
        """Run on ``batch`` images; fills in ``shapes``, of every value that is a tensor."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            shape, where = (batch, *image_shape_of(self.layers)), device_of(self.layers)
            self.run(torch.empty(shape, dtype=network_dtype(self.layers), device=where))

    def run_node(self, node: fx.Node) -> Any:
        if isinstance(layer_of(self.layers, node), MTNeuron):
            value = self.fetch_args_kwargs_from_env(node)[0][0]
        else:
            value = self.compute(node)
        if isinstance(value, Tensor) and node.op != "output":
            self.shapes[node] = value.shape
        return value

    def compute(self, node: fx.Node) -> Any:
        """The value of a node that is no neuron."""
        return super().run_node(node)


def neuron_shapes(layers: fx.GraphModule, batch: int) -> dict[str, torch.Size]:
    """The shape of each layer of neurons, for a batch of so many images."""
    run = ShapeRun(layers)
    run.infer(batch)
    return {str(node.target): run.shapes[node] for node, _ in layer_nodes(layers, MTNeuron)}


def image_axes(layers: fx.GraphModule) -> dict[fx.Node, int]:
    """Along which axis the images of a batch lie, for each value that depends on them.

    Attention over windows puts windows beside images on one axis, and some layers put tokens
    first; where images share an axis with anything else they lie outermost.

    Example:
        >>> from torch import nn
        >>> from ..graph.tracing.trace import trace
        >>> net = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(2, 1, 2, 2))
        >>> set(image_axes(net).values())
        {0}
    """
    axes = {}
    for node, few, many in _at_two_sizes(layers):
        moving = [axis for axis in range(len(few)) if few[axis] != many[axis]]
        if moving:
            axes[node] = moving[0]
    return axes


def images_not_first(layers: fx.GraphModule) -> list[fx.Node]:
    """Neurons, and a read-out, on whose first axis something else lies than images alone."""
    return [
        node
        for node, few, many in _at_two_sizes(layers)
        if (few[0], many[0]) != BATCHES
        and (
            isinstance(layer_of(layers, node), MTNeuron)
            or any(user.op == "output" for user in node.users)
        )
    ]


BATCHES = (2, 3)


def _at_two_sizes(layers: fx.GraphModule) -> Iterator[tuple[fx.Node, torch.Size, torch.Size]]:
    """Each value's shape for batches of two sizes."""
    runs = [ShapeRun(layers), ShapeRun(layers)]
    for run, batch in zip(runs, BATCHES, strict=True):
        run.infer(batch)
    for node, few in runs[0].shapes.items():
        yield node, few, runs[1].shapes[node]
