"""What each operator and layer does over time: the one table that knows operators.

A converted network runs on running totals, so six cases cover everything (DESIGN, section 2):
data movement, linear operators, neurons, functions of each number by itself, products of two
activations, and other non-linear operators. Functions are thresholds of neurons (`functions` finds
them); where they are kept, and of the last two, the emission in a step is the difference of
f(total up to t) and f(total up to t-1); a product of spike trains is still driven by spikes: a
step's spikes on one side meet the total on the other. Whatever is not in the table is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from .nodes import NORMS, WEIGHTED, is_constant, layer_of

aten = torch.ops.aten


class OperatorKind(StrEnum):
    """How an operator treats a value that arrives over several time steps."""

    WEIGHTED = "weighted"  # convolution, linear: acts on each step's spikes, bias injected once
    AFFINE = "affine"  # batch norm in eval form: absorbed by the thresholds of the next neuron
    NEURON = "neuron"  # an activation that becomes a layer of multi-threshold neurons
    MOVE = "move"  # the same numbers elsewhere: reshape, slice, concatenate, pad with zeros
    LINEAR = "linear"  # sums and averages without weights: add, average pool
    PRODUCT = "product"  # of two activations: a temporal difference, both sides fed by neurons
    FUNCTION = "function"  # of each number by itself: thresholds of a neuron, or as difference
    DIFFERENCE = "difference"  # non-linear: runs as a temporal difference, analog
    SIZE = "size"  # arithmetic on shapes, no data


NON_LINEAR = (OperatorKind.FUNCTION, OperatorKind.DIFFERENCE)
"""What runs as a temporal difference where no neuron stands for it."""


class Sign(StrEnum):
    """Whether an operator's values can fall below 0, which decides if a neuron must be signed."""

    ANY = "any"
    KEPT = "kept"  # never below 0 where no input is
    NONNEGATIVE = "nonnegative"


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    ``reason`` says in the conversion report why the operator is analog. ``selects``: a non-linear
    operator that picks among its inputs, so that spikes stay multiples of their step.

    Example:
        >>> DEFAULT_RULES[nn.ReLU].kind
        <OperatorKind.NEURON: 'neuron'>
    """

    kind: OperatorKind
    reason: str = ""
    sign: Sign = Sign.ANY
    selects: bool = False


Key = Any  # an ATen operator, a Python function, or a layer class


_MOVES = (
    "view _unsafe_view reshape flatten unflatten permute transpose t movedim swapaxes squeeze "
    "unsqueeze slice select narrow split split_with_sizes chunk unbind cat stack expand expand_as "
    "repeat repeat_interleave clone contiguous alias detach copy type_as _to_copy to flip roll "
    "rot90 diagonal tril triu unfold im2col pixel_shuffle pixel_unshuffle channel_shuffle "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d"
)
_LINEAR = {
    Sign.KEPT: "add mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d upsample_bilinear2d upsample_linear1d "
    "upsample_trilinear3d _upsample_bilinear2d_aa col2im cumsum",
    Sign.ANY: "sub rsub neg upsample_bicubic2d _upsample_bicubic2d_aa",
}
_FUNCTIONS = (  # sign, operators
    (Sign.NONNEGATIVE, "sigmoid hardsigmoid softplus exp abs square sqrt rsqrt"),
    (Sign.KEPT, "reciprocal clamp_min maximum"),
    (
        Sign.ANY,
        "silu gelu tanh hardswish mish elu celu selu leaky_relu prelu _prelu_kernel log_sigmoid "
        "hardshrink softshrink threshold log log1p log2 expm1 erf sin cos sign floor "
        "round hardtanh relu6 atan pow floor_divide remainder nan_to_num clamp clamp_max minimum",
    ),
    (Sign.NONNEGATIVE, "gt ge lt le eq ne logical_not logical_and logical_or"),
)
_COMPARING = _FUNCTIONS[-1][1].split()
_DIFFERENCES = (  # reason in the report, sign, operators
    ("normalises by its own statistics", Sign.ANY, "layer_norm group_norm rms_norm"),
    ("normalises by its own statistics", Sign.NONNEGATIVE, "linalg_vector_norm norm var std"),
    ("softmax divides by a sum over its input", Sign.NONNEGATIVE, "softmax _softmax"),
    ("softmax divides by a sum over its input", Sign.ANY, "log_softmax _log_softmax logsumexp"),
)
_MAXIMA = "max_pool1d max_pool2d max_pool3d amax amin"


def _what(name: str) -> str:
    """What a function is called in the report."""
    return "compares" if name in _COMPARING else "a non-linear function"


def _table() -> dict[Key, Rule]:
    """The default rules, spelled out."""
    rules: dict[Key, Rule] = {}
    rules |= dict.fromkeys(WEIGHTED, Rule(OperatorKind.WEIGHTED))
    rules |= dict.fromkeys(
        NORMS, Rule(OperatorKind.AFFINE, "affine, absorbed by per-channel thresholds")
    )
    rules |= dict.fromkeys((nn.ReLU, nn.Hardtanh), Rule(OperatorKind.NEURON))
    rules[nn.Dropout] = Rule(OperatorKind.MOVE, "identity when not training", Sign.KEPT)
    maximum = "a maximum is not linear: temporal difference"
    rows = [
        (_MOVES, Rule(OperatorKind.MOVE, sign=Sign.KEPT)),
        *((names, Rule(OperatorKind.LINEAR, sign=sign)) for sign, names in _LINEAR.items()),
        (_MAXIMA, Rule(OperatorKind.DIFFERENCE, maximum, Sign.KEPT, selects=True)),
        *(
            (name, Rule(OperatorKind.FUNCTION, f"{_what(name)}: temporal difference", sign))
            for sign, names in _FUNCTIONS
            for name in names.split()
        ),
        *(
            (names, Rule(OperatorKind.DIFFERENCE, f"{reason}: temporal difference", sign))
            for reason, sign, names in _DIFFERENCES
        ),
        ("sym_size sym_numel", Rule(OperatorKind.SIZE)),
    ]
    for names, rule in rows:
        for name in names.split():
            packet = getattr(aten, name)
            rules.update({getattr(packet, overload): rule for overload in packet.overloads()})
    for function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod):
        rules[function] = Rule(OperatorKind.SIZE)
    between = Rule(OperatorKind.FUNCTION, "a non-linear function: temporal difference", Sign.KEPT)
    rules |= {aten.max.other: between, aten.min.other: rules[aten.minimum.default]}
    rules[operator.getitem] = Rule(OperatorKind.MOVE, sign=Sign.KEPT)
    return rules


class _Rules(Mapping[Key, Rule]):
    """A table that cannot be changed, and whose text is short: it stands in signatures."""

    def __init__(self, rules: Mapping[Key, Rule]) -> None:
        self._rules = MappingProxyType(dict(rules))

    def __getitem__(self, key: Key) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        return f"<DEFAULT_RULES: {len(self)} operators and layers>"


DEFAULT_RULES: Mapping[Key, Rule] = _Rules(_table())


def rule_of(
    graph_module: fx.GraphModule, node: fx.Node, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> Rule | None:
    """The rule of a node, or None. A layer's rule is looked up by its class, then its bases."""
    layer = layer_of(graph_module, node)
    if layer is not None:
        return next((rules[kind] for kind in type(layer).__mro__ if kind in rules), None)
    if node.op == "call_function" and is_constant(node):
        return Rule(OperatorKind.SIZE)
    if node.target in rules:
        return rules[node.target]
    return _conditional(node)


CONSTANT_SIDE = "a product with a constant"
_FACTORS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
_PRODUCTS = (
    *(aten.matmul.default, aten.bmm.default, aten.mm.default, aten.linear.default),
    *(aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
)
_SCATTERS = (aten.slice_scatter.default, aten.select_scatter.default)
_WHERES = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
_PICKS = (
    *(aten.index.Tensor, aten.gather.default, aten.index_select.default),
    *(aten.masked_fill.Scalar, *_WHERES, *_SCATTERS),
)


def _conditional(node: fx.Node) -> Rule | None:
    """Operators whose rule depends on their arguments."""
    if node.target in (aten.constant_pad_nd.default, aten.pad.default):
        return _padding(node)
    if node.target in _PICKS:
        return _picking(node)
    data = data_inputs(node)
    if node.target in _PRODUCTS:
        whole = not any(isinstance(i, fx.Node) and is_constant(i) for i in node.args[:2])
        return Rule(
            OperatorKind.PRODUCT,
            "a product of two activations" if whole else CONSTANT_SIDE,
            Sign.KEPT if whole else Sign.ANY,
        )
    if node.target not in (*_FACTORS, *_QUOTIENTS):
        return None
    if len(data) <= 1 and (node.target in _FACTORS or data in ([], [node.args[0]])):
        if node.target in _FACTORS and node.args[0] is node.args[1]:
            return Rule(OperatorKind.FUNCTION, "a square: temporal difference", Sign.NONNEGATIVE)
        return Rule(OperatorKind.LINEAR, "scaled by a constant", sign_of_constants(node))
    if node.target in _QUOTIENTS:
        return Rule(OperatorKind.DIFFERENCE, "divides by an activation: temporal difference")
    return Rule(OperatorKind.PRODUCT, "a product of two activations", Sign.KEPT)


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that depend on the image, each once."""
    return [item for item in node.all_input_nodes if not is_constant(item)]


def _picking(node: fx.Node) -> Rule | None:
    """Operators that pick entries: moves where it does not depend on the image which."""
    conditional, picked = True, node.args[:2]
    if node.target in _WHERES:
        picked = node.args[1:3]
    elif node.target is aten.masked_fill.Scalar:
        picked = (node.args[0], node.args[2])
    elif node.target not in _SCATTERS:
        conditional, picked = False, node.args[:1]
    if any(item not in picked for item in data_inputs(node)):
        if conditional:
            return Rule(
                OperatorKind.DIFFERENCE, "picks by what the image shows: temporal difference"
            )
        return None
    writes = (is_constant(item) if isinstance(item, fx.Node) else item != 0 for item in picked)
    if conditional and any(writes):
        return Rule(OperatorKind.DIFFERENCE, "writes constants over some entries")
    return Rule(OperatorKind.MOVE, sign=Sign.KEPT)


def _padding(node: fx.Node) -> Rule:
    """Padding with zeros, or by copies of what is there, moves numbers; other values are added."""
    mode = "constant"
    if node.target is aten.pad.default:
        mode = str(node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else mode))
    place = 3 if node.target is aten.pad.default else 2
    value = node.kwargs.get("value", node.args[place] if len(node.args) > place else 0)
    if mode != "constant" or value in (None, 0):
        return Rule(OperatorKind.MOVE, sign=Sign.KEPT)
    return Rule(OperatorKind.DIFFERENCE, "pads with a value other than 0")


def sign_of_constants(node: fx.Node) -> Sign:
    """Whether the constants among a node's arguments are known to be 0 or more."""
    numbers = [
        item for item in (*node.args, *node.kwargs.values()) if isinstance(item, float | int)
    ]
    tensors = [item for item in node.all_input_nodes if item.op == "get_attr"]
    return Sign.KEPT if not tensors and all(item >= 0 for item in numbers) else Sign.ANY
