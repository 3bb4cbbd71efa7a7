"""The neuron with one fixed threshold says the digits of the quantizer's level, ties included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mt_convert.errors import SpecError
from mt_convert.neurons import fixed_threshold
from mt_convert.neurons.dynamics import initial_state, mt_step
from mt_convert.neurons.fixed_threshold import fixed_threshold_step, listen, start_speaking
from mt_convert.neurons.ladder import Radix, Uniform, UnsignedRadix
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.totals import totals_step, totals_step_literal

CASES = [(1, (0, 15)), (3, (0, 15)), (1, (-7, 7)), (2, (-8, 5)), (1, (0, 6)), (15, (0, 255))]
STEPS = (totals_step, totals_step_literal)
CASES += [(4, (-100, 511)), (1, (-128, 127))]


def around(low: int, high: int) -> Tensor:
    """Every tie from below ``low`` to above ``high``, its neighbours to 4 ulp, and far outside."""
    ties = torch.arange(low - 3, high + 4) - 0.5
    values, up, down = [ties, ties + 0.5, ties + 0.25, ties * 40], ties, ties
    for _ in range(4):
        up = up.nextafter(torch.full_like(up, math.inf))
        down = down.nextafter(torch.full_like(down, -math.inf))
        values += [up, down]
    return torch.cat(values)


def spec_of(n: int, bounds: tuple[int, int]) -> NeuronSpec:
    ladder = Radix(n)
    steps = ladder.digits(max(-bounds[0], bounds[1]))
    return NeuronSpec(Radix(n, steps=steps), signed=bounds[0] < 0, bounds=bounds)


@pytest.mark.parametrize(("n", "bounds"), [*CASES, (1, (-1, 14)), (2, (-3, 6))])
def test_ties_from_an_odd_lowest_level_go_to_even_levels(n: int, bounds: tuple[int, int]) -> None:
    y, (low, high) = around(*bounds), bounds
    ladder = UnsignedRadix(n, steps=Radix(n).digits(high - low))
    assert ladder.steps is not None
    spec = NeuronSpec(ladder, bounds=bounds)
    assert spec.start == low
    state, sums = start_speaking(y, spec), torch.full_like(y, low)
    totals = [torch.full_like(y, low), torch.full_like(y, low)]
    for t in range(ladder.steps):
        digits, state = fixed_threshold_step(state, spec)
        assert 0 <= digits.min() <= digits.max() <= n
        sums = sums + digits.float() * (n + 1) ** (ladder.steps - 1 - t)
        at = NeuronSpec(ladder.at(t), bounds=bounds)
        totals = [step(y, s, at) for step, s in zip(STEPS, totals, strict=True)]
        assert all(torch.equal(sums, total) for total in totals), t
    assert torch.equal(sums, y.round().clamp(*bounds))


@pytest.mark.parametrize(("n", "bounds"), CASES)
def test_the_digits_are_those_of_the_level_in_every_step(n: int, bounds: tuple[int, int]) -> None:
    spec, y = spec_of(n, bounds), around(*bounds)
    ladder = spec.ladder
    assert isinstance(ladder, Radix)
    assert ladder.steps is not None
    expected = y.round().clamp(*bounds)
    state, sums = start_speaking(y, spec), torch.zeros_like(y)
    totals = [torch.zeros_like(y), torch.zeros_like(y)]
    for t in range(ladder.steps):
        digits, state = fixed_threshold_step(state, spec)
        assert digits.abs().max() <= n
        sums = sums + digits.float() * (n + 1) ** (ladder.steps - 1 - t)
        at = NeuronSpec(ladder.at(t), signed=spec.signed, bounds=bounds)
        totals = [step(y, s, at) for step, s in zip(STEPS, totals, strict=True)]
        for total in totals:
            assert torch.equal(sums, total), t
    assert torch.equal(sums, expected)
    left, rest = ladder.at(ladder.steps), torch.zeros_like(y)
    silent = totals_step(y, expected + rest, NeuronSpec(left, signed=spec.signed, bounds=bounds))
    assert torch.equal(silent, expected)


@pytest.mark.parametrize(("n", "bounds"), CASES)
def test_one_ladder_emits_what_a_beginning_of_the_window_emits(
    n: int, bounds: tuple[int, int]
) -> None:
    spec, y = spec_of(n, bounds), around(*bounds)
    assert isinstance(spec.ladder, Radix)
    total = torch.zeros_like(y)
    for t in range(spec.ladder.steps or 0):
        at, until = (
            NeuronSpec(ladder, signed=spec.signed, bounds=bounds)
            for ladder in (spec.ladder.at(t), spec.ladder.until(t))
        )
        total = totals_step(y, total, at)
        assert torch.equal(totals_step(y, torch.zeros_like(y), until), total)


def test_learned_thresholds_are_looked_up_digit_by_digit() -> None:
    gaps = (0.25, 0.5, 1.0, 0.125, 0.75, 2.0, 0.5)
    table = torch.tensor(gaps).cumsum(0)
    y = torch.cat([table, table - 0.01, table + 0.01, torch.tensor([-1.0, 0.0, 9.0])])
    expected = (y[:, None] >= table).sum(1).float()
    for n, steps in ((1, 3), (2, 2), (7, 1)):
        ladder, totals = Radix(n, steps=steps, gaps=gaps), [torch.zeros_like(y)] * 2
        for t in range(steps):
            spec = NeuronSpec(ladder.at(t), initial=0.0, bounds=(0, 7))
            totals = [step(y, s, spec) for step, s in zip(STEPS, totals, strict=True)]
        assert all(torch.equal(total, expected) for total in totals)


def test_ties_and_the_cut_at_the_ends_decide() -> None:
    spec, y = spec_of(1, (0, 6)), around(0, 6)

    def wrong(z: Tensor) -> int:
        state, sums = start_speaking(y, spec)._replace(z=z), torch.zeros_like(y)
        for t in range(3):
            digits, state = fixed_threshold_step(state, spec)
            sums = sums + digits.float() * 2 ** (2 - t)
        return int((sums != y.round().clamp(0, 6)).sum())

    assert wrong(start_speaking(y, spec).z) == 0
    assert wrong(y.double().clamp(0, 6) + 0.5) == 3  # 0.5, 2.5, 4.5 go up
    assert wrong(y.double().clamp(min=0) + 0.5) > 3


def test_a_membrane_that_multiplies_hears_the_level() -> None:
    levels = torch.arange(81.0)
    v = torch.zeros(81)
    for step in range(4):
        v = listen(v, levels.div(3 ** (3 - step), rounding_mode="floor") % 3, 3)
    assert torch.equal(v, levels)


def test_what_a_doubling_membrane_cannot_say_is_refused() -> None:
    with pytest.raises(SpecError, match="equidistant"):
        start_speaking(torch.zeros(1), NeuronSpec(Radix(1, 2, (0.5, 1.0)), initial=0.0))
    for ladder in (Uniform(3), Radix(1)):
        with pytest.raises(SpecError, match=r"Radix\(n, steps=T\)"):
            start_speaking(torch.zeros(1), NeuronSpec(ladder))
    y, spec = torch.zeros(1), NeuronSpec(Radix(1, 2), bounds=(0, 3))
    with pytest.raises(SpecError, match="by its steps"):
        totals_step(y, y, spec)
    with pytest.raises(SpecError, match="whole_window=True"):
        mt_step(initial_state(y, spec, 1.0), y, spec, 1.0)
    assert fixed_threshold.start_speaking(y, spec).z.item() == 0.5


@pytest.mark.parametrize(
    ("n", "levels", "steps"), [(1, 15, 4), (3, 15, 2), (15, 255, 2), (1, 16, 5)]
)
def test_a_level_takes_the_digits_of_the_law(n: int, levels: int, steps: int) -> None:
    assert Radix(n).digits(levels) == steps
    assert (n + 1) ** steps >= levels + 1 > (n + 1) ** (steps - 1)
    with pytest.raises(SpecError, match="convert fills it in"):
        Radix(n).at(0)
