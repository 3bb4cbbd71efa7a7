"""The table of operators: what is known, what is refused, and that a user's rule wins."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from networks import conv, images, network
from torch import Tensor, fx, nn

from mt_convert.errors import UnsupportedLayerError
from mt_convert.graph.operations import operations, reaching_output, unknown_operators
from mt_convert.graph.rules import DEFAULT_RULES, OperatorKind, Rule, rule_of
from mt_convert.graph.signals import Signal, nonnegative
from mt_convert.graph.tracing.trace import trace
from mt_convert.quantization.quantize import QuantSpec, quantize
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

aten = torch.ops.aten


class Applies(nn.Module):
    """One function on the image."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.factor = nn.Parameter(torch.full((2, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.factor)  # type: ignore[operator]


@cache
def residual() -> fx.GraphModule:
    """The traced residual network, which no test changes."""
    return trace(network("residual"), images(2))


def last_rule(function: object) -> Rule | None:
    """The rule of the last operator of a one-function network."""
    graph = trace(Applies(function), images(2))
    return rule_of(graph, list(graph.graph.nodes)[-2])


def by_name(graph: fx.GraphModule) -> dict[str, Signal]:
    """What each layer's value is made of."""
    return {str(row.node.target): row.signal for row in operations(graph).values()}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x, _: x.flatten(1), OperatorKind.MOVE),
        (lambda x, _: x.permute(0, 2, 3, 1), OperatorKind.MOVE),
        (lambda x, _: torch.cat([x, x], 1), OperatorKind.MOVE),
        (lambda x, _: x[:, :, ::2], OperatorKind.MOVE),
        (lambda x, _: x.chunk(2, 1)[0], OperatorKind.MOVE),
        (lambda x, _: nn.functional.pad(x, (1, 1)), OperatorKind.MOVE),
        (lambda x, _: nn.functional.pad(x, (1, 1), value=1.0), OperatorKind.DIFFERENCE),
        (lambda x, _: x + x, OperatorKind.LINEAR),
        (lambda x, _: x - 1, OperatorKind.LINEAR),
        (lambda x, _: x.mean((2, 3)), OperatorKind.LINEAR),
        (lambda x, _: nn.functional.avg_pool2d(x, 2), OperatorKind.LINEAR),
        (lambda x, _: x * 0.5, OperatorKind.LINEAR),
        (lambda x, _: 0.5 * x, OperatorKind.LINEAR),
        (lambda x, factor: x * factor, OperatorKind.LINEAR),
        (lambda x, factor: factor * x, OperatorKind.LINEAR),
        (lambda x, factor: x / factor, OperatorKind.LINEAR),
        (lambda x, _: nn.functional.max_pool2d(x, 2), OperatorKind.DIFFERENCE),
        (lambda x, _: x * x, OperatorKind.FUNCTION),
        (lambda x, factor: factor / x, OperatorKind.DIFFERENCE),
        (lambda x, _: torch.sigmoid(x), OperatorKind.FUNCTION),
        (lambda x, _: nn.functional.gelu(x), OperatorKind.FUNCTION),
        (lambda x, _: x.softmax(1), OperatorKind.DIFFERENCE),
        (lambda x, _: x.abs(), OperatorKind.FUNCTION),
        (lambda x, _: x * torch.sigmoid(x), OperatorKind.PRODUCT),
        (lambda x, _: x @ x.mT, OperatorKind.PRODUCT),
        (lambda x, _: x.cumprod(1), None),
        (lambda x, _: x.logcumsumexp(1), None),
    ],
)
def test_each_operator_has_its_rule_or_none(function: object, kind: OperatorKind | None) -> None:
    rule = last_rule(function)
    assert (None if rule is None else rule.kind) == kind


@pytest.mark.slow
def test_what_a_rule_calls_linear_or_move_is_additive() -> None:
    """The claim of the table itself: f(a + b) = f(a) + f(b), in eighths and so exactly."""
    functions = [
        lambda x, factor: torch.cat([x + x, factor * x], 1)[:, :, ::2].mean((2, 3)),
        lambda x, _: nn.functional.pad(nn.functional.avg_pool2d(x, 2), (1, 1)).flatten(1),
    ]
    a, b = ((images(2, seed=seed) * 8).round() / 8 for seed in (1, 2))
    for function in functions:
        graph = trace(Applies(function), images(2))
        assert torch.equal(graph(a + b), graph(a) + graph(b))
    control = trace(Applies(lambda x, _: nn.functional.max_pool2d(x, 2)), images(2))
    assert not torch.equal(control(a + b), control(a) + control(b))


class Products(nn.Module):
    """A running product, a running log-sum and a Fourier transform, none of which has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.gate = conv(2, 4), Cumulative(), conv(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = torch.logcumsumexp(self.gate(x), 1)
        return torch.fft.fft(self.head(x.mean((2, 3)))).abs()


class Cumulative(nn.Module):
    """A module of its own, whose name the error tells."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


@pytest.mark.slow
def test_all_unsupported_operators_are_listed_at_once_with_path_and_hint() -> None:
    with pytest.raises(UnsupportedLayerError, match="3 operators of Products") as caught:
        quantize(Products(), QuantSpec(), calibration=images(4))
    faults = caught.value.faults
    assert [fault.what for fault in faults] == [
        "aten.cumprod.default",
        "aten.logcumsumexp.default",
        "aten.fft_fft.default",
    ]
    assert faults[0].where == "act"
    assert all("rules={**DEFAULT_RULES" in fault.hint for fault in faults)


@pytest.mark.slow
def test_following_the_hint_works_and_the_users_rule_wins() -> None:
    model = nn.Sequential(
        *(conv(2, 4), nn.ReLU(), conv(4, 4), Cumulative(), conv(4, 4), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(16, 3)),
    ).eval()
    rules = {
        **DEFAULT_RULES,
        aten.cumprod.default: Rule(OperatorKind.DIFFERENCE, "my product"),
        aten.max_pool2d.default: Rule(OperatorKind.DIFFERENCE, "my pool"),
    }
    qann = quantize(model, QuantSpec(), calibration=images(8), rules=rules)
    with pytest.raises(UnsupportedLayerError, match=r"aten\.cumprod\.default"):
        convert(qann)
    snn = convert(qann, rules=rules)
    reasons = {row.name: row.reason for row in snn.report.analog}
    assert reasons["3"] == "my product"
    assert reasons["6"] == "my pool"
    assert [row.name for row in snn.report.weighted if row.spike_fed] == ["2", "4", "8"]
    assert {row.name: row.fed_by for row in snn.report.weighted}["4"] == ("4_input",)
    x = images(3, seed=5)
    assert torch.equal(simulate(snn, x, time_steps=1).logits[0], qann(x))
    late = convert(qann, rules=rules, whole_window=True)
    assert torch.equal(simulate(late, x, time_steps=3).logits[-1], qann(x))


@pytest.mark.slow
def test_values_are_currents_behind_weights_and_spikes_behind_neurons() -> None:
    found = by_name(residual())
    assert found["stem"] == found["a"] == found["norms.0"] == Signal.CURRENT
    assert found["relu"] == found["relu_1"] == Signal.SPIKES
    assert found["aten.add.Tensor"] == Signal.CURRENT
    assert found["aten.avg_pool2d.default"] == Signal.SPIKES
    found = by_name(trace(network("pools"), images(2)))
    assert found["aten.cat.default"] == found["aten.max_pool2d.default"] == Signal.SPIKES
    assert found["aten.sym_size.int"] == Signal.CONSTANT
    assert Signal.IMAGE in found.values()


def test_adding_a_constant_to_spikes_makes_a_current() -> None:
    graph = trace(Applies(lambda x, factor: torch.relu(x) + factor), images(2))
    assert list(operations(graph).values())[-1].signal is Signal.CURRENT


@pytest.mark.slow
def test_only_what_no_neuron_follows_reaches_the_output() -> None:
    graph = residual()
    reaching = {str(node.target) for node in reaching_output(operations(graph))} - {
        "aten.sym_size.int"
    }
    assert reaching >= {"head", "relu_4", "aten.avg_pool2d.default"}
    assert not reaching & {"stem", "a", "b", "c", "d", "relu", "relu_3"}


@pytest.mark.slow
def test_a_layer_of_a_derived_class_has_the_rule_of_its_base() -> None:
    class Mine(nn.Conv2d):
        pass

    graph = trace(nn.Sequential(Mine(2, 2, 3)), images(2))
    node = list(graph.graph.nodes)[1]
    graph.add_submodule("0", Mine(2, 2, 3))
    rule = rule_of(graph, node)
    assert rule is not None
    assert rule.kind is OperatorKind.WEIGHTED
    assert not unknown_operators(operations(graph))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("function", "known"),
    [
        (lambda x, _: torch.relu(x) + torch.sigmoid(x), True),
        (lambda x, _: torch.add(torch.relu(x), torch.sigmoid(x), alpha=-2), False),
        (lambda x, _: torch.relu(x) - torch.sigmoid(x), False),
        (lambda x, _: torch.maximum(torch.relu(x), torch.sigmoid(x)), True),
        (lambda x, factor: torch.minimum(torch.relu(x), -factor), False),
        (lambda x, _: torch.sigmoid(x).clamp(-2, -1), False),
        (lambda x, _: torch.sigmoid(x) * -1, False),
    ],
)
def test_what_cannot_fall_below_zero_is_known_only_where_it_is_so(
    function: object, known: bool
) -> None:
    graph = trace(Applies(function), images(2))
    assert nonnegative(graph, list(graph.graph.nodes)[-2]) is known
    assert bool((graph(3 * images(8)) >= 0).all()) is known
