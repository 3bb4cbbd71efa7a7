"""The thresholds of quantized functions, against their definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mt_convert.errors import SpecError
from mt_convert.neurons import bisection
from mt_convert.neurons.bisection import (
    NotAFunction,
    level_in_float64,
    numbers_at,
    places_of,
    sample,
    step_table,
)

FUNCTIONS = {
    "gelu": (F.gelu, (-2, 13)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), (-2, 13)),
    "silu": (F.silu, (-3, 12)),
    "hardswish": (F.hardswish, (-3, 12)),
    "mish": (F.mish, (-3, 12)),
    "sigmoid": (torch.sigmoid, (0, 255)),
    "hardsigmoid": (F.hardsigmoid, (0, 15)),
    "tanh": (torch.tanh, (-7, 8)),
    "elu": (F.elu, (-8, 7)),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), (-2, 13)),
    "falling": (lambda x: -F.softplus(x), (-7, 8)),
    "square": (lambda x: x * x, (0, 15)),
    "never at 0": (lambda x: 5 + x.sigmoid(), (0, 127)),
    "jumps": (lambda x: torch.where(x > 1, x + 2, -x), (-7, 8)),
    "far from 0": (lambda x: (1 - (x - 100).abs() * 10).relu(), (0, 15)),
}


def around(thresholds: Tensor, ulps: int = 4) -> Tensor:
    """All floats within a few ulp of thresholds."""
    near = places_of(thresholds.flatten())[:, None] + torch.arange(-ulps, ulps + 1)
    return numbers_at(near.flatten().clamp(-0x7F7FFFFF, 0x7F7FFFFF))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_is_the_definition_next_to_every_threshold_and_everywhere(name: str) -> None:
    function, bounds = FUNCTIONS[name]
    table = step_table(function, sample(function), 0.0671, bounds)
    ends = torch.tensor([3e38, -3e38, 0.0, 1e-45, -1e-45])
    x = torch.cat([around(table.thresholds), torch.linspace(-90, 110, 4001), ends])
    expected = level_in_float64(function, x, 0.0671, bounds).float()
    assert torch.equal(table(x), expected)
    assert torch.equal(table.literal(x), expected)
    moved = table.thresholds.nextafter(torch.tensor(torch.inf))
    table.thresholds.copy_(moved)
    assert not torch.equal(table(x), expected)


def test_each_channel_has_thresholds_of_its_own() -> None:
    slopes = torch.tensor([1.0, -2.0, 0.0, 0.5]).double().reshape(4, 1, 1)

    def function(x: Tensor) -> Tensor:
        return F.silu(x * slopes) + slopes

    table = step_table(function, sample(function, 4, -3), 0.125, (-16, 15), -3)
    x = around(table.thresholds)[:, None, None, None].expand(-1, 4, 1, 2)
    expected = level_in_float64(function, x, 0.125, (-16, 15)).float()
    assert torch.equal(table(x), expected)
    assert torch.equal(table.literal(x), expected)
    assert table.levels[2].unique().tolist() == [0]
    assert (table.weights[1] < 0).any()


def test_thresholds_passed_beyond_the_level_are_pairs_of_a_dip() -> None:
    table = step_table(F.silu, sample(F.silu), 0.25, (-1, 14))
    x = torch.tensor([-9.0, -1.0, 0.0, 3.0])
    assert table(x).tolist() == [0, -1, 0, 11]
    assert table.crossed(None, x).tolist() == [2, 0, 0, 0]
    assert table.crossed(x, x.flip(0)).tolist() == [2, 0, 0, 2]


def test_what_no_ladder_describes_is_said() -> None:
    with pytest.raises(NotAFunction, match="not a number at -"):
        sample(torch.log)
    with pytest.raises(NotAFunction, match="turns"):
        sample(torch.sin)
    jitter = torch.Generator().manual_seed(0)

    def unclean(x: Tensor) -> Tensor:
        return x + 1e-9 * (torch.rand(x.shape, generator=jitter, dtype=x.dtype) - 0.5)

    with pytest.raises(SpecError, match="not clean") as caught:
        step_table(unclean, sample(unclean), 0.125, (-8, 7), name="act")
    assert "act" in str(caught.value)
    assert "functions" in str(caught.value)


def test_a_feature_between_all_samples_is_found_by_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def narrow(x: Tensor) -> Tensor:
        return (1 - (x - 3.3).abs() * 4).relu()

    assert step_table(narrow, sample(narrow), 0.25, (0, 3)).weights.sum() == 0
    seen = sample(narrow)
    monkeypatch.setattr(bisection, "_turns", lambda levels: [torch.zeros(0, dtype=torch.long)] * 3)
    with pytest.raises(SpecError, match="no ladder"):
        step_table(narrow, seen, 0.25, (0, 3))
