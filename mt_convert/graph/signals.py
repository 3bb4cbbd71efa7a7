"""What every value of a network is made of: the image, spikes, currents or constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch
from torch import fx, nn

from .nodes import is_constant, layer_of
from .rules import (
    DEFAULT_RULES,
    NON_LINEAR,
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


def signal_of(
    node: fx.Node, layer: nn.Module | None, rule: Rule | None, given: Sequence[Signal]
) -> Signal:
    """What a node's value is made of, from what it is given of the image; neurons turn currents
    into spikes, and the read-out is what is read."""
    if node.op == "placeholder":
        return Signal.IMAGE
    if node.op == "output":
        return given[0] if given else Signal.CONSTANT
    if is_constant(node) or rule is None or rule.kind is OperatorKind.SIZE:
        return Signal.CONSTANT
    if rule.kind is OperatorKind.NEURON:
        return Signal.IMAGE if getattr(layer, "encodes_input", False) else Signal.SPIKES
    if rule.kind in (OperatorKind.WEIGHTED, OperatorKind.AFFINE, OperatorKind.PRODUCT):
        return Signal.CURRENT
    if rule.kind in NON_LINEAR and not rule.selects:
        return Signal.CURRENT
    if Signal.CURRENT in given or adds_constant(node):
        return Signal.CURRENT
    return Signal.IMAGE if Signal.IMAGE in given else Signal.SPIKES


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


def nonnegative(
    graph_module: fx.GraphModule, node: fx.Node, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> bool:
    """Whether a value is known never to fall below 0: then its neurons need not be signed.

    Example:
        >>> from torch import nn
        >>> from .tracing.trace import trace
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
