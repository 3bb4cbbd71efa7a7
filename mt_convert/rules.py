"""What each operator and layer does over time: the one table that knows operators.

A converted network runs on running totals, so four cases cover everything (DESIGN, section 2):
data movement, linear operators, neurons, and non-linear operators, whose emission in a step is the
difference of f(total up to t) and f(total up to t-1). Whatever is not in the table is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from .errors import Fault
from .graph import NORMS, WEIGHTED, describe, layer_of

aten = torch.ops.aten


class Kind(StrEnum):
    """How an operator treats a value that arrives over several time steps."""

    WEIGHTED = "weighted"  # convolution, linear: acts on each step's spikes, bias injected once
    AFFINE = "affine"  # batch norm in eval form: absorbed by the thresholds of the next neuron
    NEURON = "neuron"  # an activation that becomes a layer of multi-threshold neurons
    MOVE = "move"  # the same numbers elsewhere: reshape, slice, concatenate, pad with zeros
    LINEAR = "linear"  # sums and averages without weights: add, average pool
    DIFFERENCE = "difference"  # non-linear: runs as a temporal difference, analog
    SIZE = "size"  # arithmetic on shapes, no data


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Example:
        >>> DEFAULT_RULES[nn.ReLU].kind
        <Kind.NEURON: 'neuron'>
    """

    kind: Kind
    reason: str = ""


class Carries(StrEnum):
    """What a value of the network is made of."""

    IMAGE = "image"  # the input, or the encoded input
    SPIKES = "spikes"  # sums and moves of what neurons emit, no weights yet
    CURRENT = "current"  # weighted sums: what a neuron integrates
    CONSTANT = "constant"  # parameters and sizes


Key = Any  # an ATen operator, a Python function, or a layer class


def _table() -> dict[Key, Rule]:
    """The default rules, spelled out."""
    rules: dict[Key, Rule] = {}
    rules |= dict.fromkeys(WEIGHTED, Rule(Kind.WEIGHTED))
    rules |= dict.fromkeys(NORMS, Rule(Kind.AFFINE, "affine, absorbed by per-channel thresholds"))
    rules |= dict.fromkeys((nn.ReLU, nn.Hardtanh), Rule(Kind.NEURON))
    rules[nn.Dropout] = Rule(Kind.MOVE, "identity when not training")
    moves = (
        "view _unsafe_view reshape flatten unflatten permute transpose t squeeze unsqueeze slice "
        "select cat stack clone contiguous alias detach expand split split_with_sizes chunk "
        "unbind narrow flip roll pixel_shuffle channel_shuffle upsample_nearest2d"
    )
    linear = (
        "add sub neg mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d upsample_bilinear2d"
    )
    difference = "max_pool1d max_pool2d max_pool3d amax"
    for names, rule in (
        (moves, Rule(Kind.MOVE)),
        (linear, Rule(Kind.LINEAR)),
        (difference, Rule(Kind.DIFFERENCE, "a maximum is not linear: temporal difference")),
        ("sym_size sym_numel", Rule(Kind.SIZE)),
    ):
        for name in names.split():
            packet = getattr(aten, name)
            rules.update({getattr(packet, overload): rule for overload in packet.overloads()})
    for function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod):
        rules[function] = Rule(Kind.SIZE)
    rules[operator.getitem] = Rule(Kind.MOVE)
    return rules


DEFAULT_RULES: Mapping[Key, Rule] = MappingProxyType(_table())


def rule_of(
    graph_module: fx.GraphModule, node: fx.Node, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> Rule | None:
    """The rule of a node, or None. A layer's rule is looked up by its class, then its bases."""
    layer = layer_of(graph_module, node)
    if layer is not None:
        return next((rules[kind] for kind in type(layer).__mro__ if kind in rules), None)
    if node.target in rules:
        return rules[node.target]
    return _conditional(node)


def _conditional(node: fx.Node) -> Rule | None:
    """Operators whose rule depends on their arguments."""
    arguments = [item for item in node.args if isinstance(item, fx.Node) and item.op != "get_attr"]
    if node.target in (aten.constant_pad_nd.default, aten.pad.default):
        value = (
            node.args[2]
            if node.target is aten.constant_pad_nd.default and len(node.args) > 2
            else 0
        )
        moved = value == 0 and node.kwargs.get("value") in (None, 0) and len(node.args) <= 3
        return Rule(Kind.MOVE) if moved else Rule(Kind.DIFFERENCE, "pads with a value other than 0")
    multiplies = node.target in (aten.mul.Tensor, aten.mul.Scalar)
    divides = node.target in (aten.div.Tensor, aten.div.Scalar) and arguments[:1] == [node.args[0]]
    if (multiplies or divides) and len(arguments) == 1:
        return Rule(Kind.LINEAR, "scaled by a constant")
    return None


def unknown_operators(
    graph_module: fx.GraphModule, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> list[Fault]:
    """One fault for each operator or layer that the rules do not know."""
    faults = []
    for node in graph_module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if rule_of(graph_module, node, rules) is None:
            name = describe(graph_module, node)
            hint = (
                f"no rule: pass rules={{**DEFAULT_RULES, {name}: Rule(...)}}, "
                "or use a supported layer"
            )
            faults.append(Fault(str(node.meta.get("path") or node.name), name, hint))
    return faults


def carried(
    graph_module: fx.GraphModule, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> dict[fx.Node, Carries]:
    """What every value of the graph is made of; neurons turn currents into spikes.

    Example:
        >>> from .trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1))
        >>> graph_module = trace(net, torch.zeros(2, 1, 4, 4))
        >>> [str(value) for value in carried(graph_module).values()]
        ['image', 'current', 'spikes', 'spikes', 'current']
    """
    carries: dict[fx.Node, Carries] = {}
    for node in graph_module.graph.nodes:
        if node.op == "output":
            continue
        carries[node] = _carried_by(graph_module, node, carries, rules)
    return carries


def _carried_by(
    graph_module: fx.GraphModule,
    node: fx.Node,
    carries: Mapping[fx.Node, Carries],
    rules: Mapping[Key, Rule],
) -> Carries:
    """What one node's value is made of, from its inputs'."""
    if node.op == "placeholder":
        return Carries.IMAGE
    rule = rule_of(graph_module, node, rules)
    if node.op == "get_attr" or rule is None or rule.kind is Kind.SIZE:
        return Carries.CONSTANT
    if rule.kind in (Kind.WEIGHTED, Kind.AFFINE):
        return Carries.CURRENT
    inputs = [carries[item] for item in node.all_input_nodes]
    data = [item for item in inputs if item is not Carries.CONSTANT]
    if rule.kind is Kind.NEURON:
        return (
            Carries.IMAGE
            if data == [Carries.IMAGE] and is_encoder(graph_module, node)
            else Carries.SPIKES
        )
    if not data:
        return Carries.CONSTANT
    if Carries.CURRENT in data or _adds_constant(node):
        return Carries.CURRENT
    return Carries.IMAGE if Carries.IMAGE in data else Carries.SPIKES


def _adds_constant(node: fx.Node) -> bool:
    """Whether an addition has a parameter or a number as one side, like a bias."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar):
        return False
    return any(not isinstance(item, fx.Node) or item.op == "get_attr" for item in node.args[:2])


def is_encoder(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a quantizer stands on the image itself: it encodes the input, it is no neuron."""
    producer = node.args[0] if node.args else None
    return (
        isinstance(producer, fx.Node)
        and producer.op == "placeholder"
        and getattr(layer_of(graph_module, node), "encodes_input", False)
    )


def reaches_output(
    graph_module: fx.GraphModule, node: fx.Node, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> bool:
    """Whether a value gets to the network's output without passing a neuron."""
    for user in node.users:
        if user.op == "output":
            return True
        rule = rule_of(graph_module, user, rules)
        passes = rule is not None and rule.kind not in (Kind.NEURON, Kind.SIZE)
        if passes and reaches_output(graph_module, user, rules):
            return True
    return False
