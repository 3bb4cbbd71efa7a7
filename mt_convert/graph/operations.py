"""What every node of a graph is, asked once: its name, layer, rule, and what it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..errors import Fault
from .nodes import is_constant, layer_of, node_name
from .rules import DEFAULT_RULES, Key, OperatorKind, Rule, data_inputs, rule_of
from .signals import Signal, signal_of


@dataclass(frozen=True, eq=False)
class Operation:
    """One row: a node of a graph as it stands now; a layer used twice has two.

    ``name``: its layer's path, the module path that it was traced from, or the node's own name.
    ``operator``: the class of its layer, or the operator. ``rule`` is None for what only brings
    values in or out, and for what no rule is known for. ``signal``: what its value is made of;
    ``fed_by``: spikes where all inputs are, else the first that is not, constant if it has none.
    ``inputs``: those of the node that depend on the image, each once. ``constant``: whether its
    own value does not.
    """

    node: fx.Node
    name: str
    operator: str
    layer: nn.Module | None
    rule: Rule | None
    signal: Signal
    fed_by: Signal
    inputs: tuple[fx.Node, ...]
    constant: bool

    @property
    def kind(self) -> OperatorKind | None:
        """The kind of its rule."""
        return None if self.rule is None else self.rule.kind

    @property
    def reason(self) -> str:
        """Why it is analog, as its rule says."""
        return "" if self.rule is None else self.rule.reason

    @property
    def call(self) -> Any:
        """What computes it: the layer, or the operator."""
        return self.node.target if self.layer is None else self.layer


Operations = Mapping[fx.Node, Operation]


def operations(
    graph_module: fx.GraphModule, rules: Mapping[Key, Rule] = DEFAULT_RULES
) -> dict[fx.Node, Operation]:
    """A row for every node, in order of execution; neurons turn currents into spikes.

    Example:
        >>> import torch
        >>> from .tracing.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1))
        >>> rows = operations(trace(net, torch.zeros(2, 1, 4, 4))).values()
        >>> for row in list(rows)[1:-1]:
        ...     print(row.name, row.operator, row.kind, row.signal)
        0 Conv2d weighted current
        1 ReLU neuron spikes
        2 aten.max_pool2d.default difference spikes
        3 Conv2d weighted current
    """
    rows: dict[fx.Node, Operation] = {}
    for node in graph_module.graph.nodes:
        rows[node] = operation(graph_module, node, rows, rules)
    return rows


def operation(
    graph_module: fx.GraphModule,
    node: fx.Node,
    before: Operations,
    rules: Mapping[Key, Rule] = DEFAULT_RULES,
) -> Operation:
    """The row of one node, from those ``before`` it: for who changes the graph on the way."""
    layer, rule = layer_of(graph_module, node), rule_of(graph_module, node, rules)
    inputs = tuple(data_inputs(node))
    given = [before[item].signal for item in inputs]
    others = [signal for signal in given if signal is not Signal.SPIKES]
    return Operation(
        node=node,
        name=node_name(node),
        operator=str(node.target) if layer is None else type(layer).__name__,
        layer=layer,
        rule=rule,
        signal=signal_of(node, layer, rule, given),
        fed_by=(others or given or [Signal.CONSTANT])[0],
        inputs=inputs,
        constant=is_constant(node),
    )


def unknown_operators(operations: Operations) -> list[Fault]:
    """One fault for each operator or layer that the rules do not know."""
    return [
        Fault(
            row.name,
            row.operator,
            f"no rule: pass rules={{**DEFAULT_RULES, {row.operator}: Rule(...)}}, "
            "or use a supported layer",
        )
        for row in operations.values()
        if row.rule is None and row.node.op not in ("placeholder", "get_attr", "output")
    ]


def reaching_output(operations: Operations) -> set[fx.Node]:
    """The values that get to the network's output without passing a neuron.

    Example:
        >>> import torch
        >>> from .tracing.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> rows = operations(trace(net, torch.zeros(2, 1, 4, 4)))
        >>> sorted(str(node) for node in reaching_output(rows))
        ['_1', '_3', 'sym_size_int_1', 'view']
    """
    stopping = (None, OperatorKind.NEURON, OperatorKind.SIZE)
    reaching: set[fx.Node] = set()
    for row in reversed(list(operations.values())):
        passes = row.kind not in stopping and row.node in reaching
        if passes or row.node.op == "output":
            reaching.update(row.node.all_input_nodes)
    return reaching
