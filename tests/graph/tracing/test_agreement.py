"""What tracing would lose is refused by name: draws, writes, numbers that change between calls."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.errors import UnsupportedLayerError
from mt_convert.graph.tracing import trace as trace_module
from mt_convert.graph.tracing.agreement import check_agreement
from mt_convert.graph.tracing.trace import trace

Change = Callable[["Net", Tensor], Tensor]
COUNTER = [0]


class Net(nn.Module):
    """Two layers, and something done between them."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.a, self.b, self.change = nn.Linear(6, 8), nn.Linear(8, 2), change
        self.register_buffer("h", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)
        self.plain, self.count = torch.zeros(8), 1
        self.seen: list[Tensor] = []
        self.memory: dict[str, Tensor] = {}
        self.rng = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.change(self, self.a(x))))


def hidden(net: Net, x: Tensor) -> Tensor:
    x = x + net.h
    net.h.copy_(x[0].detach())
    return x


def reassigned(net: Net, x: Tensor) -> Tensor:
    x = x + net.h
    net.h = x[0].detach()
    return x


def counted(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    return x


def numbered(net: Net, x: Tensor) -> Tensor:
    net.count += 1
    return x * net.count


def listed(net: Net, x: Tensor) -> Tensor:
    net.seen.append(x.detach())
    return x


def plain(net: Net, x: Tensor) -> Tensor:
    x = x + net.plain
    net.plain = x.mean(0).detach()
    return x


def remembered(net: Net, x: Tensor) -> Tensor:
    net.memory["last"] = x.detach()
    return x


def first_call(net: Net, x: Tensor) -> Tensor:
    net.h.fill_(1.0)
    return x * net.h


def momentum(net: Net, x: Tensor) -> Tensor:
    return F.batch_norm(x, net.h, torch.ones(8), training=True)


def generator(net: Net, x: Tensor) -> Tensor:
    return x + torch.rand(8, generator=net.rng)


def attention(net: Net, x: Tensor) -> Tensor:
    y = x[:, None]
    return F.scaled_dot_product_attention(y, y, y, dropout_p=0.5)[:, 0]


def global_count(net: Net, x: Tensor) -> Tensor:
    COUNTER[0] += 1
    return x * COUNTER[0]


REFUSED: dict[str, tuple[Change, str]] = {
    "a hidden state": (hidden, "h  is written in forward"),
    "a buffer set anew": (reassigned, "h  is written in forward"),
    "a counter": (counted, "calls  is written in forward"),
    "a Python number": (numbered, "count  is written in forward"),
    "a list": (listed, "seen  is written in forward"),
    "a plain tensor": (plain, "plain  is written in forward"),
    "a mapping": (remembered, "memory  is written in forward"),
    "written by the first call alone": (first_call, "h  is written in forward"),
    "statistics of a batch": (momentum, "h  is written in forward"),
    "F.dropout": (lambda net, x: F.dropout(x), "aten.dropout.default  draws"),
    "F.alpha_dropout": (lambda net, x: F.alpha_dropout(x, 0.5, True), "aten.alpha_dropout.default"),
    "F.rrelu": (lambda net, x: F.rrelu(x, training=True), "aten.rrelu.default  draws"),
    "dropout in attention": (attention, "aten.scaled_dot_product_attention.default  draws"),
    "noise": (lambda net, x: x + torch.randn_like(x), "aten.randn_like.default  draws"),
    "noise that is a constant": (lambda net, x: x + torch.randn(8), "aten.randn.default  draws"),
    "a random mask": (lambda net, x: x * torch.bernoulli(x * 0 + 0.5), "aten.bernoulli.default"),
    "a random order": (lambda net, x: x[:, torch.randperm(8)], "aten.randperm.default  draws"),
    "a draw of numpy": (lambda net, x: x * float(np.random.rand()), "Net  the same images give"),
    "a draw of Python": (lambda net, x: x * random.random(), "Net  the same images give"),
    "a global counter": (global_count, "Net  the same images give other numbers"),
    "a grad mode": (lambda net, x: x * (1 + torch.is_grad_enabled()), "with gradients"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_of_the_images_is_refused_by_name(name: str) -> None:
    change, words = REFUSED[name]
    net = Net(change).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UnsupportedLayerError) as refused:
        trace(net, torch.zeros(2, 6))
    assert words in str(refused.value)
    assert "is not a function of its images alone: 1 fault" in str(refused.value)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def cached(net: Net, x: Tensor) -> Tensor:
    if "table" not in net.memory:
        net.memory["table"] = torch.arange(8.0)
    return x + net.memory["table"]


def sized(net: Net, x: Tensor) -> Tensor:
    net.count = x.shape[1]
    return x / net.count


TAKEN: dict[str, Change] = {
    "a table kept by the first call": cached,
    "a size noted": sized,
    "idle dropout": lambda net, x: F.dropout(x, training=net.training),
    "dropout of nothing": lambda net, x: F.dropout(x, 0.0),
    "an operator in place": lambda net, x: x.add_(1),
    "no gradients": lambda net, x: x * 2 if torch.is_grad_enabled() else x + x,
    "the batch size": lambda net, x: x * (1 + x.shape[0]),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", TAKEN)
def test_caches_sizes_and_idle_dropouts_are_no_state(name: str) -> None:
    net, x = Net(TAKEN[name]).eval(), torch.randn(3, 6)
    graph, kept = trace(net, torch.zeros(2, 6)), x.clone()
    assert torch.allclose(graph(x), net(x), atol=1e-5)
    assert torch.equal(x, kept)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(
    share=st.floats(0.05, 0.95),
    draws=st.sampled_from(["dropout", "alpha_dropout", "feature_alpha_dropout"]),
    on_image=st.booleans(),
)
def test_any_dropout_that_is_never_idle_is_refused(
    share: float, draws: str, on_image: bool
) -> None:
    drop = getattr(F, draws)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    at = net[0] if on_image else net[2]
    at.register_forward_pre_hook(lambda layer, x: (drop(x[0], share, True),))
    with pytest.raises(UnsupportedLayerError, match=f"aten.{draws}.default +draws random numbers"):
        trace(net.eval(), torch.zeros(2, 6))


def test_a_graph_that_is_another_function_is_refused() -> None:
    net = Net(lambda net, x: x).eval()
    graph = trace(net, torch.zeros(2, 6))
    graph.b.bias.data += 0.5
    with pytest.raises(UnsupportedLayerError, match="the traced graph gives other numbers"):
        check_agreement(net, graph, torch.zeros(2, 6))
    assert trace_module.check_agreement is check_agreement


@pytest.mark.slow
def test_random_numbers_of_the_caller_go_on_as_if_nothing_had_been_traced() -> None:
    net = Net(lambda net, x: x).eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trace(net, torch.zeros(2, 6))
    assert torch.equal(torch.rand(4), expected)


class _DropsAConstant(nn.Module):
    """A table that goes through a small network with a dropout, as relative positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 64, generator=torch.Generator().manual_seed(0)))
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(64, 64)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + self.fc(self.drop(self.table))


def test_an_idle_dropout_of_a_constant_draws_nothing() -> None:
    net = _DropsAConstant().eval()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(trace(net, x)(x), net(x), atol=1e-6)
