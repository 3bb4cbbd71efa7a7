"""Every surrogate's gradient against its formula, written out a second time here."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mt_convert.errors import SpecError
from mt_convert.neurons.surrogate import (
    ATan,
    Rectangular,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangular,
    spike,
    straight_through,
)

FORMULAS = [
    (Rectangular(1.0), lambda x: 1.0 if abs(x) <= 0.5 else 0.0),
    (Rectangular(4.0), lambda x: 0.25 if abs(x) <= 2.0 else 0.0),
    (ATan(2.0), lambda x: 1.0 / (1.0 + (math.pi * x) ** 2)),
    (ATan(3.0), lambda x: 1.5 / (1.0 + (math.pi * 3.0 * x / 2) ** 2)),
    (Sigmoid(4.0), lambda x: 4.0 * math.exp(-4.0 * x) / (1 + math.exp(-4.0 * x)) ** 2),
    (Triangular(1.0), lambda x: max(0.0, 1.0 - abs(x))),
    (Triangular(0.5), lambda x: 2.0 * max(0.0, 1.0 - 2.0 * abs(x))),
    (StraightThrough(), lambda x: 1.0 if abs(x) <= 0.5 else 0.0),
]


@pytest.mark.parametrize(("surrogate", "formula"), FORMULAS, ids=lambda value: repr(value)[:24])
def test_backward_of_the_spike_is_the_formula(
    surrogate: Surrogate, formula: Callable[[float], float]
) -> None:
    x = torch.linspace(-3, 3, 97, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(1, 2, 97, dtype=torch.float64)
    (spike(x, surrogate) * weight).sum().backward()
    expected = torch.tensor([formula(value) for value in x.tolist()], dtype=torch.float64) * weight
    assert x.grad is not None
    assert torch.allclose(x.grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("surrogate", [row[0] for row in FORMULAS] + [None], ids=repr)
def test_forward_is_one_from_exactly_zero_upwards(surrogate: Surrogate | None) -> None:
    tiny = torch.finfo(torch.float32).tiny
    x = torch.tensor([-1.0, -tiny, -0.0, 0.0, tiny, 2.0])
    assert spike(x, surrogate).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert spike(x.double(), surrogate).dtype == torch.float64


@pytest.mark.parametrize("surrogate", [row[0] for row in FORMULAS], ids=repr)
def test_every_shape_has_area_one(surrogate: Surrogate) -> None:
    edges = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    area = surrogate.derivative(middles).sum() * 1e-3
    assert abs(area.item() - 1) < 1e-3


def test_without_a_surrogate_no_gradient_passes() -> None:
    assert not spike(torch.zeros(2, requires_grad=True), None).requires_grad


def test_straight_through_hands_the_value_on_and_the_gradient_only_inside() -> None:
    x = torch.tensor([0.3, 0.6, 7.0], requires_grad=True)
    value = torch.tensor([0.0, 1.0, 3.0])
    passed = straight_through(value, x, torch.tensor([False, True, False]))
    (passed * torch.tensor([2.0, 3.0, 5.0])).sum().backward()
    assert torch.equal(passed, value)
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 3.0, 0.0]


@pytest.mark.parametrize("kind", [Rectangular, ATan, Sigmoid, Triangular])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "2"])
def test_a_width_or_slope_must_be_finite_and_above_zero(kind: type, value: object) -> None:
    with pytest.raises(SpecError, match="finite number above 0"):
        kind(value)
