"""Networks of functions, spelled out in all ways; random functions of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, fx, nn

aten = torch.ops.aten
IMAGE = (2, 5, 5)


class Net(nn.Module):
    """A convolution, a batch norm that turns a sign, a function, and a classifier."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.prelu, self.norm = nn.PReLU(4), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.tensor([0.5, -1.0, 0.0, 2.0]).reshape(4, 1, 1))
        self.shift = nn.Parameter(torch.tensor([-0.25]))
        self.bn.weight.data = torch.tensor([1.0, -2.0, 0.5, 1.5])
        self.prelu.weight.data = torch.tensor([0.25, -0.5, 0.0, 0.1])
        self.norm.weight.data = torch.tensor([1.5, -1.0, 0.0, 2.0])
        self.norm.bias.data = torch.tensor([0.25, 0.5, -0.5, -1.0])
        self.norm.running_mean.data = torch.tensor([0.1, -0.2, 0.3, 0.0])
        self.norm.running_var.data = torch.tensor([0.5, 2.0, 1.0, 0.7])
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.bn(self.conv(x))).mean((2, 3)))


FUNCTIONS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "gelu": lambda net, x: F.gelu(x),
    "gelu by tanh": lambda net, x: 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * x**3))),
    "silu": lambda net, x: F.silu(x),
    "silu spelled out": lambda net, x: x * torch.sigmoid(x),
    "hardswish spelled out": lambda net, x: x * F.relu6(x + 3) / 6,
    "mish spelled out": lambda net, x: x * torch.tanh(F.softplus(x)),
    "elu": lambda net, x: F.elu(x),
    "tanh": lambda net, x: torch.tanh(x),
    "leaky by where": lambda net, x: torch.where(x > 0, x, 0.1 * x),
    "prelu": lambda net, x: net.prelu(x),
    "square of relu": lambda net, x: F.relu(x) ** 2 * net.scale + net.shift,
    "gate by a batch norm": lambda net, x: F.silu(x) * torch.sigmoid(net.norm(x)),
    "gelu and a batch norm": lambda net, x: net.norm(F.gelu(x)),
    "softsign": lambda net, x: F.softsign(x),
    "gate": lambda net, x: F.silu(x) * torch.sigmoid(net.conv(F.pad(x[:, :2], (1, 1, 1, 1)))),
}


FEW = ("silu spelled out", "prelu", "square of relu", "gate", "gate by a batch norm")
EACH = [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in FUNCTIONS]
"""All of them; `make test` runs those of four kinds."""


def network(name: str) -> Net:
    """One of `FUNCTIONS`, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(FUNCTIONS[name]).eval()


def images(count: int = 8) -> Tensor:
    """Always the same."""
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(1)) * 2


_UNARY = (
    *(aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default),
    *(aten.relu.default, aten.elu.default, aten.hardswish.default, aten.mish.default),
    *(aten.softplus.default, aten.abs.default, aten.neg.default, aten.hardsigmoid.default),
    aten.leaky_relu.default,
)
_BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.maximum.default)
CHANNELS = 3


@st.composite
def random_functions(draw: st.DrawFn) -> tuple[fx.GraphModule, int]:
    """A network that is one random function of 1 to 5 operators, and how many channels have
    constants of their own; slopes may be negative, or 0, and of a batch norm."""
    graph, held = fx.Graph(), dict[str, Any]()
    value = torch.empty(2, CHANNELS, 1, 1)
    values = [graph.placeholder("x")]
    channels = 1
    for _ in range(draw(st.integers(1, 5))):
        kinds = ["unary", "unary", "binary", "number", "channels", "norm"]
        kind = draw(st.sampled_from(kinds))
        first = draw(st.sampled_from(values[-2:]))
        if kind == "unary":
            node = graph.call_function(draw(st.sampled_from(_UNARY)), (first,))
        elif kind == "binary":
            operator = draw(st.sampled_from(_BINARY))
            node = graph.call_function(operator, (first, draw(st.sampled_from(values))))
        elif kind == "number":
            operator = draw(st.sampled_from(_BINARY[:3]))
            number = draw(st.integers(-24, 24)) / 8
            node = graph.call_function(operator, (first, number))
        elif kind == "norm":
            channels = CHANNELS
            held[name := f"norm_{len(held)}"] = _random_norm(draw)
            node = graph.call_module(name, (first,))
        else:
            channels = CHANNELS
            name = f"constant_{len(held)}"
            numbers = [draw(st.integers(-16, 16)) / 8 for _ in range(CHANNELS)]
            held[name] = torch.tensor(numbers).reshape(CHANNELS, 1, 1)
            constant = graph.get_attr(name)
            operator = draw(st.sampled_from(_BINARY[:3]))
            node = graph.call_function(operator, (first, constant))
        values.append(node)
    for node in values:
        node.meta["val"] = value
    graph.output(values[-1])
    return fx.GraphModule(held, graph), channels


def _random_norm(draw: st.DrawFn) -> nn.BatchNorm2d:
    """A batch norm with statistics, in evaluation mode."""
    norm = nn.BatchNorm2d(CHANNELS)
    tensors = (norm.weight, norm.bias, norm.running_mean)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(torch.tensor([draw(st.integers(-16, 16)) / 8 for _ in range(CHANNELS)]))
        norm.running_var.copy_(
            torch.tensor([draw(st.integers(1, 32)) / 8 for _ in range(CHANNELS)])
        )
    return norm.eval()
