"""What a network computes depends on values alone: not on strides, flags or the grad mode."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, lived_in, quantized
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.graph.by_values import call
from mt_convert.quantization.quantize import QuantizedModel, levels_of, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import quantized_activation
from mt_convert.spiking.simulate import simulate

aten = torch.ops.aten
MODES: dict[str, type[AbstractContextManager[None]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
}
SHAPE = (4, 9, 16)


class Attends(nn.Module):
    """Attention with the batch first: inside, tokens lie first, in a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(96)
        self.attention = nn.MultiheadAttention(96, 3, batch_first=True)
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Turns(nn.Module):
    """A matrix times maps, GELU of a transposed view, a linear layer on another."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(images(16, (9,), seed=3) / 3)
        self.channels, self.head = nn.Linear(16, 96), nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu((self.mixing @ x).transpose(1, 2))  # [batch, 16, 16]
        x = F.gelu(self.channels(x).transpose(1, 2)).transpose(1, 2)
        return self.head(F.relu(x).mean(1))


BUILT = {"attends": (Attends, (17, 96)), "turns": (Turns, (9, 16))}
NAMES = ("functional", "residual", "clamps", "pools", "bn_act", *BUILT)


@cache
def network(name: str) -> QuantizedModel:
    """A quantized network, made once and not changed."""
    if name not in BUILT:
        return quantized(name)
    build, shape = BUILT[name]
    net = lived_in(build())
    return quantize(net, QuantSpec(act_bits=6), calibration=images(8, shape, 2))


def lie(x: Tensor, layout: str) -> Tensor:
    """The same images, otherwise in memory."""
    if layout == "transposed":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "every other":
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "batch last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x


LAYOUTS = ("contiguous", "transposed", "every other", "batch last")


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(1, 4),
    seed=st.integers(0, 99),
    layout=st.sampled_from(LAYOUTS),
    mode=st.sampled_from(sorted(MODES)),
    frozen=st.booleans(),
    turned=st.booleans(),
)
def test_both_networks_give_the_same_bits_in_every_mode_layout_and_batch_size(
    name: str, batch: int, seed: int, layout: str, mode: str, frozen: bool, turned: bool
) -> None:
    qann = network(name)
    x = images(batch, qann.image_shape, seed)
    snn = convert(qann)
    for parameter in snn.parameters():
        parameter.requires_grad_(not frozen)
    if turned:
        snn = snn.to(memory_format=torch.channels_last)
    with torch.no_grad(), levels_of(qann) as expected:
        logits = qann(x)
    with MODES[mode](), levels_of(qann) as levels:
        again = qann(lie(x, layout))
    run = simulate(snn, lie(x, layout), time_steps=1)
    assert torch.equal(again, logits)
    assert torch.equal(run.logits[0], logits)
    for layer in expected:
        assert torch.equal(levels[layer], expected[layer]), layer
        assert torch.equal(run.totals[layer], expected[layer]), layer
    walked = forward_with(snn, x, lambda name, layer, value: quantized_activation(layer, value))
    assert torch.equal(walked, logits)


OPERATORS = {
    "gelu": (F.gelu, (images(8, (33, 40)).transpose(1, 2),)),
    "silu": (F.silu, (images(8, (33, 40)).transpose(1, 2),)),
    "softmax": (F.softmax, (images(8, (33, 40)).transpose(1, 2), -1)),
    "linear": (F.linear, (images(2, (96, 17)).transpose(1, 2), images(96, (96,)))),
    "matrix of many": (aten.matmul.default, (images(17, (96,)), images(3, (96, 40)))),
    "vector of many": (aten.matmul.default, (images(96, ()), images(3, (96, 40)))),
    "many of matrix": (aten.matmul.default, (images(3, (96, 40)).mT, images(96, (17,)))),
    "many of many": (aten.matmul.default, (images(3, (40, 96)).mT, images(3, (17, 40)).mT)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_gives_the_same_bits_whatever_its_arguments_strides_and_flags(
    name: str,
) -> None:
    operator, arguments = OPERATORS[name]
    expected = call(operator, arguments, {})
    close = operator(*arguments)
    assert torch.allclose(expected, close, atol=1e-4)
    for needed in ((), (0,), (1,), (0, 1)):
        for copied in (False, True):
            given = [
                (item.clone(memory_format=torch.contiguous_format) if copied else item).detach()
                if isinstance(item, Tensor)
                else item
                for item in arguments
            ]
            for place in needed:
                if place < len(given) and isinstance(given[place], Tensor):
                    given[place].requires_grad_()
            assert torch.equal(call(operator, given, {}), expected), (needed, copied)


def test_torch_alone_does_not() -> None:
    turned = OPERATORS["gelu"][1][0]
    assert not torch.equal(F.gelu(turned), F.gelu(turned.contiguous()))


def test_a_layer_whose_weight_lies_otherwise_gives_the_same_bits() -> None:
    layer = nn.Conv2d(8, 16, 3)
    turned = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    turned.load_state_dict(layer.state_dict())
    x = images(2, (8, 9, 9))
    assert torch.equal(call(turned, (lie(x, "transposed"),), {}), call(layer, (x,), {}))


@pytest.mark.slow
def test_gradients_reach_the_image_and_the_weights_of_a_quantized_network_in_eval_mode() -> None:
    qann = quantized("residual")
    x = images(2).requires_grad_()
    qann(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in qann.layers.stem.parameters())
