"""Which parts of a graph are functions of one number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from function_networks import EACH, IMAGE, Net, images, network
from torch import Tensor, fx, nn

from mt_convert.graph.functions import allowed_in_functions, extract, find_functions, replace_
from mt_convert.graph.nodes import layer_nodes
from mt_convert.graph.rules import DEFAULT_RULES, OperatorKind, Rule
from mt_convert.graph.tracing.trace import trace

aten = torch.ops.aten


def found(graph: fx.GraphModule) -> list[str]:
    """What was found, the first first."""
    functions, _ = find_functions(graph, lambda function: "")
    return [str(function) for function in reversed(functions)]


@pytest.mark.sampled
@pytest.mark.parametrize("name", EACH)
def test_a_function_leaves_the_graph_and_computes_the_same(name: str) -> None:
    graph = trace(network(name), images(2))
    expected = graph(images())
    functions, analog = find_functions(graph, lambda function: "")
    assert len(functions) == (2 if name == "gate" else 1)
    assert not analog
    for place, function in enumerate(functions):
        replace_(graph, function, f"function_{place}", extract(graph, function))
    graph.graph.lint()
    graph.recompile()
    assert torch.equal(graph(images()), expected)
    left = {DEFAULT_RULES.get(node.target) for node in graph.graph.nodes}
    assert OperatorKind.FUNCTION not in {rule.kind for rule in left if rule is not None}
    names = [item for item, _ in graph.named_parameters()]
    assert len(names) == len(set(names))


def test_constants_stay_the_parameters_that_they_were() -> None:
    graph = trace(network("square of relu"), images(2))
    scale = graph.get_parameter("scale")
    ((function,), _) = find_functions(graph, lambda function: "")
    assert (function.channels, function.axis) == (4, -3)
    inner = extract(graph, function)
    replace_(graph, function, "act", inner)
    assert any(item is scale for item in inner.parameters())
    assert "scale" not in dict(graph.named_parameters())


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda net, x: F.relu(x) * 0.5, []),  # a neuron already
        (lambda net, x: F.relu6(x + 3) / 6, []),
        (lambda net, x: x * 2 + 1, []),  # an affine
        (lambda net, x: F.gelu(x * 3), ["gelu"]),  # affines in front stay there
        (lambda net, x: F.gelu(x) * net.scale, ["gelu"]),  # and scales behind
        (lambda net, x: F.gelu(F.relu(x)) + F.relu(x), ["add(relu, gelu, relu_1)"]),
        (lambda net, x: torch.sigmoid(net.bn(F.relu(x))), ["sigmoid"]),
        (lambda net, x: torch.tanh(net.norm(x)), ["tanh"]),  # a batch norm in front stays there
        (lambda net, x: torch.tanh(net.norm(F.gelu(x))), ["tanh(gelu, norm)"]),
        (lambda net, x: x * torch.tanh(net.norm(x)), ["mul(norm, tanh)"]),
        (lambda net, x: net.norm(F.gelu(x)), ["norm(gelu)"]),
        (lambda net, x: net.norm(F.relu(x)), []),
        (lambda net, x: net.norm(F.gelu(net.norm(x))), ["gelu"]),  # one norm in two places
        (lambda net, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), ["sigmoid"]),
        (lambda net, x: torch.softmax(x, 1), []),
        (lambda net, x: x + torch.linspace(0, 1, 9).reshape(3, 3), []),  # no constant by channel
        (lambda net, x: F.gelu(x + torch.linspace(0, 1, 9).reshape(3, 3)), ["gelu"]),
    ],
)
def test_what_is_a_function_and_what_is_none(function: object, expected: list[str]) -> None:
    assert found(trace(Net(function).eval(), images(2))) == expected  # type: ignore[arg-type]


def test_what_only_a_division_reads_stays_analog_and_says_so() -> None:
    def norm(net: Net, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()

    functions, analog = find_functions(trace(Net(norm).eval(), images(2)), lambda function: "")
    assert not functions
    assert [str(function) for function, _ in analog.values()] == ["sqrt", "pow"]
    assert all("division" in reason for _, reason in analog.values())


def test_a_reason_keeps_all_operators_of_a_function() -> None:
    graph = trace(network("silu spelled out"), images(2))
    functions, analog = find_functions(graph, lambda function: "mine")
    assert not functions
    assert [(str(function), reason) for function, reason in analog.values()] == [
        ("mul(sigmoid)", "mine")
    ]


@pytest.mark.slow
def test_a_users_rule_makes_a_function_of_an_operator() -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(x)

    graph = trace(nn.Sequential(nn.Conv2d(2, 2, 1), Bessel(), nn.Conv2d(2, 2, 1)), images(2))
    mine = {**DEFAULT_RULES, aten.special_i0.default: Rule(OperatorKind.FUNCTION)}
    functions, _ = find_functions(graph, lambda function: "", mine)
    assert [str(function) for function in functions] == ["special_i0"]
    kept = {**DEFAULT_RULES, aten.gelu.default: Rule(OperatorKind.DIFFERENCE, "mine")}
    graph = trace(network("gelu"), images(2))
    assert not find_functions(graph, lambda function: "", kept)[0]


def test_only_operators_of_single_numbers_may_stand_in_a_stored_function() -> None:
    assert all(map(allowed_in_functions, (aten.gelu.default, aten.mul.Tensor, aten.where.self)))
    assert not any(
        map(allowed_in_functions, (aten.cat.default, aten.repeat.default, aten.full.default))
    )


@pytest.mark.slow
def test_one_layer_used_twice_gives_two_functions() -> None:
    act = nn.GELU()
    net = nn.Sequential(nn.Conv2d(2, 2, 1), act, nn.Conv2d(2, 2, 1), act, nn.Flatten())
    graph = trace(net.eval(), torch.zeros(2, *IMAGE))
    assert found(graph) == ["gelu", "gelu"]
    assert len(list(layer_nodes(graph, nn.Conv2d))) == 2
