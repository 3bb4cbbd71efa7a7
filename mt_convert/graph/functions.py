"""Functions of each number by itself: what of a graph one layer of neurons can stand for.

Any part of a graph of elementwise operators with one input that depends on the image is one
function: x * sigmoid(x), x * relu6(x + 3) / 6, x * tanh(softplus(x)), where(x > 0, x, 0.1 x).
Constants may be numbers, or one for each channel, and a batch norm is an affine of these: one that
stands between two operators of a function, or behind it, is part of it; one in front of it stays
there, where the thresholds take it in. `find_functions` knows no operator by name but those that
are linear: which are functions says the table of rules.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .nodes import NORMS, attribute, is_constant, layer_of
from .rules import DEFAULT_RULES, Key, OperatorKind, Rule, data_inputs, rule_of

aten = torch.ops.aten


def _overloads(names: str) -> frozenset[Any]:
    packets = [getattr(aten, name) for name in names.split()]
    return frozenset(getattr(packet, item) for packet in packets for item in packet.overloads())


_SCALES = _overloads("mul div neg")
_AFFINE = _overloads("add sub rsub where masked_fill") | _SCALES
_IDENTITIES = _overloads("clone contiguous alias detach")
_NEURONS = (nn.ReLU, nn.Hardtanh)
_CONDITIONAL = (OperatorKind.PRODUCT, OperatorKind.DIFFERENCE)


@dataclass(frozen=True, eq=False)
class Function:
    """A part of a graph that computes one number from one number.

    ``root`` computes its value from that of ``source`` by ``nodes``, in order, root last. Where
    ``channels`` is more than 1, each entry of ``axis``, counted from the end, has constants of its
    own.
    """

    root: fx.Node
    source: fx.Node
    nodes: tuple[fx.Node, ...]
    channels: int
    axis: int

    def __str__(self) -> str:
        """Its operators: gelu, or mul(sigmoid)."""
        *inner, last = [_operator_name(node) for node in self.nodes]
        others = [name for name in dict.fromkeys(inner) if name != last]
        return last + (f"({', '.join(others)})" if others else "")


Decide = Callable[[Function], str]


def find_functions(
    graph_module: fx.GraphModule,
    decide: Decide,
    rules: Mapping[Key, Rule] = DEFAULT_RULES,
) -> tuple[list[Function], dict[fx.Node, tuple[Function, str]]]:
    """The functions that neurons are to stand for, the last first; and those that stay analog, each
    with the reason that ``decide`` gave (empty: it does not).

    Example:
        >>> from .tracing.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Mish(), nn.Conv2d(1, 1, 1), nn.Hardswish())
        >>> functions, analog = find_functions(
        ...     trace(net, torch.zeros(2, 1, 4, 4)), lambda function: ""
        ... )
        >>> [str(function) for function in functions], len(analog)
        (['hardswish', 'mish'], 0)
    """
    search = _Search(graph_module, rules)
    taken: list[Function] = []
    analog: dict[fx.Node, tuple[Function, str]] = {}
    kept: set[fx.Node] = set()
    needed = {item for node in graph_module.graph.nodes if node.op == "output" for item in [node]}
    for node in reversed(list(graph_module.graph.nodes)):
        if node not in needed:
            continue
        function = None if node in kept else search.function(node)
        if function is not None:
            reason = search.read_by_analog(node, analog) or decide(function)
            if not reason:
                taken.append(function)
                needed.add(function.source)
                continue
            analog[node] = function, reason
            kept.update(function.nodes)
        needed.update(node.all_input_nodes)
    return taken, analog


class _Search:
    """What each node can be a function of."""

    def __init__(self, graph_module: fx.GraphModule, rules: Mapping[Key, Rule]) -> None:
        self.graph_module, self.rules = graph_module, rules
        self.order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
        self.calls = Counter(node.target for node in self.order if node.op == "call_module")
        self.sources: dict[fx.Node, list[fx.Node]] = {}
        for node in self.order:
            self.sources[node] = self._sources(node)

    def function(self, node: fx.Node) -> Function | None:
        """The function that ends in a node, if it is worth a neuron: not one that only scales, that
        compares, or that a layer of neurons is already."""
        value = _value(node)
        if node.target in _SCALES | _IDENTITIES and not self._is_bent(node):
            return None
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        best: Function | None = None
        bent = 0
        for source in reversed(self.sources[node]):  # the nearest first
            function = self._between(source, node)
            if function is None:
                continue
            count = sum(map(self._is_bent, function.nodes))
            if count > bent:  # what is further is taken for a function more, not for an affine
                best, bent = function, count
        if best is None or all(self._is_neuron(item) for item in best.nodes if self._is_bent(item)):
            return None
        return best

    def read_by_analog(self, node: fx.Node, analog: Mapping[fx.Node, Any]) -> str:
        """Why no neuron would be read: all that reads it, through sums and moves, is analog."""
        stack, seen, ends = list(node.users), set[fx.Node](), list[fx.Node]()
        inside = {item for function, _ in analog.values() for item in function.nodes}
        while stack:
            user = stack.pop()
            if user in seen:
                continue
            seen.add(user)
            rule = rule_of(self.graph_module, user, self.rules)
            passes = rule is not None and rule.kind in (OperatorKind.MOVE, OperatorKind.LINEAR)
            if passes and user not in inside:
                stack.extend(user.users)
            elif rule is None or rule.kind is not OperatorKind.SIZE:
                ends.append(user)
        if ends and all(item in inside or self._divides(item) for item in ends):
            return "read by a division or another analog function alone"
        return ""

    # ------------------------------------------------------------------------------- one node

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that this one is an elementwise function of, the furthest first."""
        inputs = data_inputs(node)
        if not inputs or not self._is_elementwise(node, inputs):
            return []
        common = set.intersection(*({item, *self.sources[item]} for item in inputs))
        return sorted(common, key=self.order.__getitem__)

    def _is_elementwise(self, node: fx.Node, inputs: Sequence[fx.Node]) -> bool:
        """Whether each number of the result comes from the numbers at its place."""
        rule = rule_of(self.graph_module, node, self.rules)
        known = node.target in _AFFINE | _IDENTITIES or self._is_neuron(node)
        if rule is None or not (known or self._norm(node) or self._is_function(rule)):
            return False
        shapes = [_shape(item) for item in (node, *inputs)]
        if None in shapes or any(shape != shapes[0] for shape in shapes):
            return False
        return None not in self._axes(node)

    def _axis(self, node: fx.Node, rank: int, reader: fx.Node) -> tuple[int, int] | None:
        """Along which axis a constant has how many entries; None where it is no such constant."""
        value = attribute(self.graph_module, str(node.target)) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            return None
        if value.numel() == 1 and value.dim() <= rank:
            return -1, 1
        if reader.target in (aten.prelu.default,):
            return 1 - rank, value.numel()
        long = [axis for axis, size in enumerate(value.shape) if size != 1]
        if len(long) != 1 or long[0] - value.dim() + rank < 1 or value.dim() > rank:
            return None
        return long[0] - value.dim(), value.numel()

    def _between(self, source: fx.Node, root: fx.Node) -> Function | None:
        """The function from one node to another."""
        nodes, stack = set[fx.Node](), [root]
        while stack:
            node = stack.pop()
            if node is not source and node not in nodes:
                nodes.add(node)
                stack.extend(data_inputs(node))
        axes = {
            axis for node in nodes for axis in self._axes(node) if axis is not None and axis[1] > 1
        }
        if len(axes) > 1:
            return None
        axis, channels = next(iter(axes), (-1, 1))
        ordered = sorted(nodes, key=self.order.__getitem__)
        return Function(root, source, tuple(ordered), channels, axis)

    def _axes(self, node: fx.Node) -> list[tuple[int, int] | None]:
        """Along which axis each constant of a node has how many entries."""
        rank = len(_shape(node) or ()) + 1
        if (norm := self._norm(node)) is not None:
            return [(1 - rank, norm.num_features)]
        return [self._axis(item, rank, node) for item in node.all_input_nodes if is_constant(item)]

    def _norm(self, node: fx.Node) -> Any:
        """The batch norm of a node, if it has one to itself, with statistics."""
        layer: Any = layer_of(self.graph_module, node)
        own = isinstance(layer, NORMS) and self.calls[node.target] == 1
        return layer if own and layer.running_mean is not None else None

    def _is_neuron(self, node: fx.Node) -> bool:
        return isinstance(layer_of(self.graph_module, node), _NEURONS)

    def _is_function(self, rule: Rule) -> bool:
        return rule.kind is OperatorKind.FUNCTION

    def _is_bent(self, node: fx.Node) -> bool:
        """Whether it is more than an affine."""
        if self._is_neuron(node):
            return True
        rule = rule_of(self.graph_module, node, self.rules)
        if rule is None or node.target in _IDENTITIES:
            return False
        return self._is_function(rule) or rule.kind in _CONDITIONAL

    def _divides(self, node: fx.Node) -> bool:
        rule = rule_of(self.graph_module, node, self.rules)
        by_data = rule is not None and rule.kind is OperatorKind.DIFFERENCE
        return by_data and node.target in _overloads("div")


def extract(graph_module: fx.GraphModule, function: Function) -> fx.GraphModule:
    """The function as a graph of its own, with the network's own constants and batch norms:
    `forward(x)`. What they were called there stands in the ``meta`` of its nodes, as ``origin``.

    Example:
        >>> from .tracing.trace import trace
        >>> net = trace(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Mish()), torch.zeros(2, 1, 4, 4))
        >>> (function,), _ = find_functions(net, lambda function: "")
        >>> extract(net, function)(torch.zeros(3)).tolist()
        [0.0, 0.0, 0.0]
    """
    graph, held = fx.Graph(), dict[str, Any]()
    new: dict[fx.Node, fx.Node] = {function.source: graph.placeholder("x")}

    def argument(item: fx.Node) -> fx.Node:
        if item not in new:  # a constant
            name = f"constant_{len(held)}"
            held[name] = attribute(graph_module, str(item.target))
            new[item] = graph.get_attr(name)
            new[item].meta["origin"] = str(item.target)
        return new[item]

    for node in function.nodes:
        layer: Any = layer_of(graph_module, node)
        target: Any = node.target
        args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
        if isinstance(layer, nn.ReLU):
            new[node] = graph.call_function(aten.relu.default, args)
        elif isinstance(layer, nn.Hardtanh):
            bounds = (layer.min_val, layer.max_val)
            new[node] = graph.call_function(aten.hardtanh.default, (*args, *bounds))
        elif isinstance(layer, NORMS):
            name = f"norm_{len(held)}"
            held[name] = layer
            new[node] = graph.call_module(name, args)
            new[node].meta["origin"] = str(target)
        else:
            new[node] = graph.call_function(target, args, kwargs)
    graph.output(new[function.root])
    return fx.GraphModule(held, graph)


def replace_(graph_module: fx.GraphModule, function: Function, name: str, layer: nn.Module) -> None:
    """Put a layer where a function stood; what nobody reads any more goes, in place."""
    graph_module.add_submodule(name, layer)
    with graph_module.graph.inserting_before(function.root):
        call = graph_module.graph.call_module(name, (function.source,))
    call.meta = {"path": name, "val": _value(function.root)}
    function.root.replace_all_uses_with(call)
    constants = [item for node in function.nodes for item in node.all_input_nodes]
    for node in (*reversed(function.nodes), *dict.fromkeys(constants)):
        if node.users or node not in graph_module.graph.nodes or node is function.source:
            continue
        graph_module.graph.erase_node(node)
        if node.op in ("get_attr", "call_module"):
            _forget(graph_module, str(node.target))


def _forget(graph_module: fx.GraphModule, target: str) -> None:
    """Drop a layer or constant that no node names any more."""
    if any(str(node.target) == target for node in graph_module.graph.nodes):
        return
    owner, _, leaf = target.rpartition(".")
    delattr(graph_module.get_submodule(owner), leaf)


def allowed_in_functions(target: Any, rules: Mapping[Key, Rule] = DEFAULT_RULES) -> bool:
    """Whether a stored function may hold an operator: it makes as many numbers as it gets.

    Example:
        >>> allowed_in_functions(aten.gelu.default), allowed_in_functions(aten.repeat.default)
        (True, False)
    """
    rule = rules.get(target)
    known = target in _AFFINE | _IDENTITIES | {aten.relu.default, operator.getitem}
    return known or (rule is not None and rule.kind is OperatorKind.FUNCTION)


def _operator_name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target).rpartition(".")[2]
    return str(node.target).split(".")[1]


def _value(node: fx.Node) -> Any:
    """What tracing saw of a value."""
    value = node.meta.get("val")
    # a batch norm or dropout stands for the first of several
    return value[0] if isinstance(value, (tuple, list)) else value


def _shape(node: fx.Node) -> list[Any] | None:
    """The sizes of a value along all axes but the first; None where they are not known."""
    value = _value(node)
    return None if not isinstance(value, Tensor) else [str(size) for size in value.shape[1:]]
