"""What tests remember of tracing is of equal networks alone, and is what tracing gives."""

from __future__ import annotations

import pytest
import torch
from networks import dense, images, network
from torch import nn
from traces import key_of, remember

from mt_convert.graph.nodes import image_shape_of
from mt_convert.graph.tracing.trace import trace

X = images(2)


def test_a_network_that_differs_in_one_bit_or_setting_is_another() -> None:
    key = key_of(dense(), X)
    assert key is not None
    assert key_of(dense(), X) == key
    other = dense()
    weight = other[0].weight.data  # type: ignore[index]
    weight.view(torch.int32)[0, 0, 0, 0] ^= 1
    frozen, in_place, training = dense(), dense(), dense().train()
    frozen[0].weight.requires_grad_(False)  # type: ignore[index]
    in_place[1] = nn.ReLU(inplace=True)  # type: ignore[operator]
    keys = [key_of(net, X) for net in (other, frozen, in_place, training)]
    keys += [key_of(dense(), X.double()), key_of(dense(), images(2, (2, 8, 16)))]
    assert len({key, *keys}) == 7


def test_code_without_a_name_is_not_compared() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert key_of(Own(), X) is None


@pytest.mark.slow
def test_a_remembered_graph_is_the_traced_one_and_is_nobody_elses() -> None:
    calls: list[nn.Module] = []

    def counted(model: nn.Module, example: torch.Tensor) -> torch.fx.GraphModule:
        calls.append(model)
        return trace(model, example)

    once = remember(counted)
    first, second, third = (once(network("residual"), X) for _ in range(3))
    assert len(calls) == 1
    assert str(second.graph) == str(first.graph)
    assert image_shape_of(second) == image_shape_of(first) == X.shape[1:]
    assert torch.equal(second(X), first(X))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    assert torch.equal(third(X), first(X))
