"""What every value of a network is made of: the image, spikes, currents or constants."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import fx

from .nodes import is_constant, layer_of
from .rules import (
    DEFAULT_RULES,
    Key,
    OperatorKind,
    Rule,
    Sign,
    data_inputs,
    rule_of,
    sign_of_constants,
)

aten = torch.ops.aten


class Signal(StrEnum):
    """What a value of the network is made of."""

    IMAGE = "image"  # the input, or the encoded input
    SPIKES = "spikes"  # sums and moves of what neurons emit, no weights yet
    CURRENT = "current"  # weighted sums: what a neuron integrates
    CONSTANT = "constant"  # parameters and sizes


def signals_of(
    graph_module: fx.GraphModule, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> dict[fx.Node, Signal]:
    """What every value of the graph is made of; neurons turn currents into spikes.

    Example:
        >>> from torch import nn
        >>> from .trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1))
        >>> graph_module = trace(net, torch.zeros(2, 1, 4, 4))
        >>> [str(value) for value in signals_of(graph_module).values()]
        ['image', 'current', 'spikes', 'spikes', 'current']
    """
    signals: dict[fx.Node, Signal] = {}
    for node in graph_module.graph.nodes:
        if node.op == "output":
            continue
        signals[node] = signal_of(graph_module, node, signals, rules)
    return signals


def signal_of(
    graph_module: fx.GraphModule,
    node: fx.Node,
    signals: Mapping[fx.Node, Signal],
    rules: Mapping[Key, Rule],
) -> Signal:
    """What one node's value is made of, from its inputs'."""
    if node.op == "placeholder":
        return Signal.IMAGE
    rule = rule_of(graph_module, node, rules)
    if is_constant(node) or rule is None or rule.kind is OperatorKind.SIZE:
        return Signal.CONSTANT
    data = [signals[item] for item in data_inputs(node)]
    if rule.kind is OperatorKind.NEURON:
        encodes = data == [Signal.IMAGE] and is_encoder(graph_module, node)
        return Signal.IMAGE if encodes else Signal.SPIKES
    if rule.kind in (OperatorKind.WEIGHTED, OperatorKind.AFFINE, OperatorKind.PRODUCT):
        return Signal.CURRENT
    if rule.kind is OperatorKind.DIFFERENCE and not rule.selects:
        return Signal.CURRENT
    if Signal.CURRENT in data or adds_constant(node):
        return Signal.CURRENT
    return Signal.IMAGE if Signal.IMAGE in data else Signal.SPIKES


_ADDING = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_JOINING = (aten.cat.default, aten.stack.default)


def adds_constant(node: fx.Node) -> bool:
    """Whether an addition or a concatenation has a parameter or a number as one side, like a
    bias."""
    if node.target in _JOINING:
        return any(is_constant(item) for item in node.all_input_nodes)
    if node.target not in _ADDING:
        return False
    return any(not isinstance(item, fx.Node) or is_constant(item) for item in node.args[:2])


def is_encoder(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a quantizer reads the image itself: it encodes the input, it is no neuron."""
    producer = node.args[0] if node.args else None
    return (
        isinstance(producer, fx.Node)
        and producer.op == "placeholder"
        and getattr(layer_of(graph_module, node), "encodes_input", False)
    )


def reaching_output(
    graph_module: fx.GraphModule, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> set[fx.Node]:
    """The values that get to the network's output without passing a neuron.

    Example:
        >>> from torch import nn
        >>> from .trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> graph_module = trace(net, torch.zeros(2, 1, 4, 4))
        >>> sorted(str(node) for node in reaching_output(graph_module))
        ['_1', '_3', 'sym_size_int_1', 'view']
    """
    reaching: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        for user in node.users:
            rule = rule_of(graph_module, user, rules)
            passes = rule is not None and rule.kind not in (OperatorKind.NEURON, OperatorKind.SIZE)
            if user.op == "output" or (passes and user in reaching):
                reaching.add(node)
    return reaching


def nonnegative(
    graph_module: fx.GraphModule, node: fx.Node, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> bool:
    """Whether a value is known never to fall below 0: then its neurons need not be signed.

    Example:
        >>> from torch import nn
        >>> from .trace import trace
        >>> net = nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(2), nn.GELU())
        >>> graph_module = trace(net, torch.zeros(2, 1, 4, 4))
        >>> [nonnegative(graph_module, node) for node in graph_module.graph.nodes][:-1]
        [False, True, True, False]
    """
    visited, stack = set(), [node]
    while stack:
        item = stack.pop()
        if item in visited:
            continue
        visited.add(item)
        rule, layer = rule_of(graph_module, item, rules), layer_of(graph_module, item)
        if rule is None or item.op == "placeholder":
            return False
        if rule.kind is OperatorKind.NEURON:
            if getattr(layer, "signed", False) or getattr(layer, "min_val", 0) < 0:
                return False
        elif rule.sign is Sign.ANY:
            return False
        elif rule.sign is Sign.KEPT:
            subtracts = item.kwargs.get("alpha", 1) < 0  # type: ignore[operator]
            if subtracts or (adds_constant(item) and sign_of_constants(item) is Sign.ANY):
                return False
            stack.extend(data_inputs(item))
    return True
