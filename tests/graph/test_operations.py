"""Rows of a graph: one for each node, the same as its questions asked one by one."""

from __future__ import annotations

from collections.abc import Callable

import networks
import networks_of_operators
import pytest
import torch
from networks import conv, images, quantized
from torch import Tensor, fx, nn

from mt_convert.graph.nodes import is_constant, layer_of, node_name
from mt_convert.graph.operations import Operation, operations
from mt_convert.graph.rules import OperatorKind, Rule, data_inputs, rule_of
from mt_convert.graph.signals import Signal, signal_of
from mt_convert.graph.tracing.trace import trace
from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

KIND, SIGNAL = OperatorKind, Signal


def rows_of(model: nn.Module) -> list[Operation]:
    """The rows of a model traced on small images."""
    return list(operations(trace(model.eval(), images(2))).values())


def named(rows: list[Operation], name: str) -> Operation:
    """The only row of that name."""
    (row,) = (row for row in rows if row.name == name)
    return row


class Small(nn.Module):
    """A layer used twice, sizes, a constant computed from parameters, and one that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = conv(2, 4), conv(4, 4), nn.Linear(4, 3)
        self.scale, self.shift = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.stem(x))))
        x = self.twice(x) * self.scale
        x = x.reshape(x.shape[0], 4, -1).mean(2)
        return self.head(x) + self.shift.exp()


@pytest.mark.slow
def test_names_operators_kinds_and_signals_of_a_small_network() -> None:
    rows = [row for row in rows_of(Small()) if not row.constant]
    assert [(row.name, row.operator, row.kind, row.signal, row.fed_by) for row in rows] == [
        ("x", "x", None, SIGNAL.IMAGE, SIGNAL.CONSTANT),
        ("stem", "Conv2d", KIND.WEIGHTED, SIGNAL.CURRENT, SIGNAL.IMAGE),
        ("relu", "ReLU", KIND.NEURON, SIGNAL.SPIKES, SIGNAL.CURRENT),
        ("twice", "Conv2d", KIND.WEIGHTED, SIGNAL.CURRENT, SIGNAL.SPIKES),
        ("relu_1", "ReLU", KIND.NEURON, SIGNAL.SPIKES, SIGNAL.CURRENT),
        ("twice", "Conv2d", KIND.WEIGHTED, SIGNAL.CURRENT, SIGNAL.SPIKES),
        ("mul", "aten.mul.Tensor", KIND.LINEAR, SIGNAL.CURRENT, SIGNAL.CURRENT),
        ("view", "aten.view.default", KIND.MOVE, SIGNAL.CURRENT, SIGNAL.CURRENT),
        ("mean", "aten.mean.dim", KIND.LINEAR, SIGNAL.CURRENT, SIGNAL.CURRENT),
        ("head", "Linear", KIND.WEIGHTED, SIGNAL.CURRENT, SIGNAL.CURRENT),
        ("add", "aten.add.Tensor", KIND.LINEAR, SIGNAL.CURRENT, SIGNAL.CURRENT),
        ("output", "output", None, SIGNAL.CURRENT, SIGNAL.CURRENT),
    ]


@pytest.mark.slow
def test_a_layer_used_twice_has_two_rows_of_one_name_and_layer() -> None:
    first, second = (row for row in rows_of(Small()) if row.name == "twice")
    assert first.layer is second.layer is first.call
    assert first.node is not second.node
    assert first != second
    assert first.inputs != second.inputs


@pytest.mark.slow
def test_parameters_and_sizes_are_constant_and_no_inputs_of_what_reads_them() -> None:
    rows = rows_of(Small())
    constant = [row for row in rows if row.constant]
    assert {row.operator for row in constant} == {"scale", "exp", "aten.sym_size.int"}
    assert {row.signal for row in constant} == {SIGNAL.CONSTANT}
    (size,) = (row for row in constant if row.operator == "aten.sym_size.int")
    assert size.kind is KIND.SIZE
    scaled = named(rows, "mul")
    assert len(scaled.node.all_input_nodes) == 2
    assert [str(item.target) for item in scaled.inputs] == ["twice"]
    assert scaled.reason == "scaled by a constant"
    assert scaled.call is torch.ops.aten.mul.Tensor


@pytest.mark.slow
def test_an_input_read_twice_is_there_once_and_both_sides_of_a_product_are() -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + x) @ torch.relu(x).mT

    rows = rows_of(Products())
    image, add, relu, _, product, _ = rows
    assert add.inputs == (image.node,)
    assert product.kind is KIND.PRODUCT
    assert product.fed_by is SIGNAL.IMAGE, "the first side that is not spikes"
    assert relu.node not in product.inputs, "it reads the transposed spikes"
    assert len(product.inputs) == 2


@pytest.mark.slow
def test_the_rows_follow_the_graph_in_order_and_leave_nothing_out() -> None:
    graph = trace(Small().eval(), images(2))
    rows = operations(graph)
    assert list(rows) == list(graph.graph.nodes)
    assert all(row.node is node for node, row in rows.items())
    assert {row.name for row in rows.values()} >= {"stem", "twice", "head"}


def test_rows_show_the_users_rules() -> None:
    graph = trace(nn.Sequential(nn.GELU()), images(2))
    mine = Rule(KIND.LINEAR, "mine")
    node = list(graph.graph.nodes)[1]
    assert operations(graph)[node].kind is KIND.FUNCTION
    row = operations(graph, {torch.ops.aten.gelu.default: mine})[node]
    assert (row.rule, row.reason) == (mine, "mine")
    unknown = operations(graph, {})[node]
    assert (unknown.rule, unknown.kind, unknown.reason) == (None, None, "")


BUILDS: dict[str, Callable[[], fx.GraphModule]] = {
    **{
        name: lambda name=name: trace(networks.network(name), images(2, networks.shape_of(name)))
        for name in networks.NETWORKS
    },
    **{
        f"operators {name}": lambda name=name: trace(networks_of_operators.network(name), images(2))
        for name in networks_of_operators.FAMILIES
    },
}


OFTEN = (*networks.NETWORKS, "operators mixer", "operators squeeze_excite")  # by `make test`


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.long) for n in BUILDS]
)
def test_rows_are_the_answers_to_the_separate_questions(name: str) -> None:
    graph = BUILDS[name]()
    signals: dict[fx.Node, Signal] = {}
    for node, row in operations(graph).items():
        layer, rule = layer_of(graph, node), rule_of(graph, node)
        inputs = data_inputs(node)
        given = [signals[item] for item in inputs]
        signals[node] = signal_of(node, layer, rule, given)
        assert (row.name, row.layer, row.rule) == (node_name(node), layer, rule)
        assert (row.signal, list(row.inputs)) == (signals[node], inputs)
        assert row.constant == is_constant(node)
        assert (row.fed_by is SIGNAL.SPIKES) == (set(given) == {SIGNAL.SPIKES})
        assert row.fed_by in (given or [SIGNAL.CONSTANT])
    assert any(row.kind is KIND.WEIGHTED for row in operations(graph).values())


@pytest.mark.slow
def test_a_spiking_network_shows_the_layers_that_it_has_now() -> None:
    """A calibration changes layers in place: rows that were kept would be those of before."""
    snn, batch = convert(quantized("one_relu"), ladder=Uniform(3), signed=True), images(2)
    row = next(row for row in snn.operations.values() if isinstance(row.layer, MTNeuron))
    assert isinstance(row.layer, MTNeuron)
    before = simulate(snn, batch, time_steps=1).totals[row.name]
    snn.layers.set_submodule(row.name, row.layer.with_(offset=torch.tensor(2.0)))
    assert snn.operations[row.node].layer is snn.layers.get_submodule(row.name)
    assert snn.operations[row.node].layer is not row.layer
    assert not torch.equal(simulate(snn, batch, time_steps=1).totals[row.name], before)
    copied = snn.with_neurons({})
    assert list(copied.operations) == list(copied.layers.graph.nodes)
    assert not set(copied.operations) & set(snn.operations)
