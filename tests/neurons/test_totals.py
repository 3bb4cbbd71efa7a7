"""The running-total form: literal = closed form = round-half-even quantizer, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from mt_convert.errors import SpecError
from mt_convert.neurons.dynamics import (
    initial_state,
    largest_emission,
    largest_power,
    mt_step,
)
from mt_convert.neurons.ladder import Binary, Firing, Ladder, Learned, PowerOfTwo, Uniform
from mt_convert.neurons.spec import LIF, NeuronSpec, Reset
from mt_convert.neurons.totals import (
    count_events,
    count_packets,
    literal_from_rest,
    set_bits,
    set_bits_literal,
    totals_step,
    totals_step_literal,
)

FIRINGS: list[tuple[Ladder, Firing]] = [
    (Uniform(1), Firing.PARALLEL),
    (Uniform(3), Firing.PARALLEL),
    (Uniform(15), Firing.PARALLEL),
    (Uniform(3), Firing.CASCADE),
    (Binary(1), Firing.CASCADE),
    (Binary(4), Firing.CASCADE),
    (PowerOfTwo(1), Firing.PARALLEL),
    (PowerOfTwo(4), Firing.PARALLEL),
]
BOUNDS: list[tuple[int | None, int | None] | None] = [None, (0, 15), (-8, 7), (0, None), (0, 5)]
Step = Callable[[Tensor, Tensor, NeuronSpec], Tensor]
DTYPES = [torch.float32, torch.float64]


def adversarial(dtype: torch.dtype, reach: int = 20) -> Tensor:
    """Every threshold k − ½ from −reach to reach, the float neighbours to 4 ulp, and the levels."""
    ties = torch.arange(-reach, reach + 1, dtype=dtype) - 0.5
    values, up, down = [ties, ties + 0.5, ties + 0.25], ties, ties
    for _ in range(4):
        up = up.nextafter(torch.full_like(up, math.inf))
        down = down.nextafter(torch.full_like(down, -math.inf))
        values += [up, down]
    return torch.cat(values)


def totals(bounds: tuple[int | None, int | None] | None, dtype: torch.dtype) -> Tensor:
    """Every running total a neuron with these bounds may hold, within ±16."""
    lo, hi = bounds or (None, None)
    return torch.arange(-16 if lo is None else lo, 17 if hi is None else hi + 1, dtype=dtype)


@pytest.mark.parametrize(("ladder", "firing"), FIRINGS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_closed_form_equals_the_literal_rule_on_ties_and_their_neighbours(
    ladder: Ladder, firing: Firing, signed: bool, bounds: tuple[int, int], dtype: torch.dtype
) -> None:
    spec = NeuronSpec(ladder, firing, signed=signed, bounds=bounds)
    y, total = (
        grid.flatten()
        for grid in torch.meshgrid(adversarial(dtype), totals(bounds, dtype), indexing="ij")
    )
    assert torch.equal(totals_step(y, total, spec), totals_step_literal(y, total, spec))


@pytest.mark.parametrize("firing", [Firing.PARALLEL, Firing.CASCADE])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_of_full_reach_is_round_half_even_and_clamp(
    firing: Firing, signed: bool, dtype: torch.dtype
) -> None:
    ladder = Uniform(15) if firing is Firing.PARALLEL else Binary(4)
    spec = NeuronSpec(ladder, firing, signed=signed, bounds=(0, 15))
    y = adversarial(dtype)
    expected = y.round().clamp(0, 15)
    for step in (totals_step, totals_step_literal):
        assert torch.equal(step(y, torch.zeros_like(y), spec), expected)


@pytest.mark.parametrize(("ladder", "firing"), [*FIRINGS, (Learned((0.5, 1.25)), Firing.PARALLEL)])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bounds", [None, (0, 15), (-8, 7), (0, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_literal_rule_from_rest_is_the_same_in_blocks(
    ladder: Ladder, firing: Firing, signed: bool, bounds: tuple[int, int], dtype: torch.dtype
) -> None:
    initial = 0.0 if isinstance(ladder, Learned) else 0.5
    spec = NeuronSpec(ladder, firing, signed=signed, bounds=bounds, initial=initial)
    y = adversarial(dtype).repeat(70)[None]
    assert torch.equal(literal_from_rest(y, spec), totals_step_literal(y, 0 * y, spec))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_error_of_a_millionth_is_caught(dtype: torch.dtype) -> None:
    spec, y = NeuronSpec(Uniform(15), bounds=(0, 15)), adversarial(dtype)
    exact = totals_step(y, torch.zeros_like(y), spec)
    for error in (1e-6, -1e-6):
        assert not torch.equal(totals_step_literal(y * (1 + error), 0 * y, spec), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thresholds_that_round_half_up_are_caught(dtype: torch.dtype) -> None:
    y = adversarial(dtype)
    half_up = (y + 0.5).floor().clamp(0, 15)
    exact = totals_step(y, 0 * y, NeuronSpec(Uniform(15), bounds=(0, 15)))
    wrong = int((half_up != exact).sum())
    assert wrong >= 8  # the ties below the odd levels, at least


@pytest.mark.parametrize(("ladder", "firing"), FIRINGS)
@pytest.mark.parametrize("bounds", [(0, 15), (-8, 7)])
def test_a_signed_total_settles_at_the_quantizer_ties_included(
    ladder: Ladder, firing: Firing, bounds: tuple[int, int]
) -> None:
    spec, y = NeuronSpec(ladder, firing, signed=True, bounds=bounds), adversarial(torch.float32)
    total = torch.zeros_like(y)
    for _ in range(15):
        total = totals_step(y, total, spec)
        assert bool((total >= bounds[0]).all())
        assert bool((total <= bounds[1]).all())
    assert torch.equal(total, y.round().clamp(*bounds))
    assert torch.equal(totals_step(y, total, spec), total)


@pytest.mark.parametrize(("ladder", "firing"), FIRINGS)
def test_an_unsigned_total_never_falls(ladder: Ladder, firing: Firing) -> None:
    generator = torch.Generator().manual_seed(0)
    spec, total = NeuronSpec(ladder, firing, bounds=(0, 15)), torch.zeros(500)
    y = torch.zeros(500)
    for _ in range(8):
        y = y + torch.randn(500, generator=generator) * 4
        before, total = total, totals_step(y, total, spec)
        assert bool((total >= before).all())
    assert not torch.equal(total, y.round().clamp(0, 15))


@pytest.mark.parametrize(
    ("row", "signed", "bounds"),
    list(product(FIRINGS, [False, True], [None, (0, 15), (-8, 7)])),
)
def test_stepping_the_potential_gives_the_same_totals_off_the_ties(
    row: tuple[Ladder, Firing], signed: bool, bounds: tuple[int, int]
) -> None:
    spec = NeuronSpec(row[0], row[1], signed=signed, bounds=bounds)
    generator = torch.Generator().manual_seed(1)
    currents = torch.randint(-400, 500, (10, 400), generator=generator).double() / 64
    currents[0] += 1 / 128  # y is never halfway between two levels
    state, delta = initial_state(currents[0], spec, 0.25), 0.25
    y = total = torch.zeros_like(currents[0])
    for current in currents:
        spikes, state = mt_step(state, current * delta, spec, delta)
        before, y = total, y + current
        total = totals_step(y, total, spec)
        assert torch.equal(state.total, total)
        assert torch.equal(spikes, (total - before) * delta)


def test_on_a_tie_the_potential_rounds_up_and_the_total_to_even() -> None:
    y, spec = torch.tensor([0.5, 1.5, 2.5]), NeuronSpec(Uniform(4))
    assert mt_step(initial_state(y, spec, 1.0), y, spec, 1.0)[0].tolist() == [1, 2, 3]
    assert totals_step(y, torch.zeros(3), spec).tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    "spec",
    [
        NeuronSpec(Learned((1.0, 1.0))),
        NeuronSpec(Uniform(2), charge=LIF(2.0)),
        NeuronSpec(Uniform(2), reset=Reset.HARD),
        NeuronSpec(Uniform(2), initial=0.0),
    ],
)
@pytest.mark.parametrize("step", [totals_step, totals_step_literal])
def test_a_neuron_without_a_running_form_is_refused(spec: NeuronSpec, step: Step) -> None:
    with pytest.raises(SpecError, match="use mt_step"):
        step(torch.zeros(1), torch.zeros(1), spec)


# --------------------------------------------------------------------------------- learned gaps

GAPS = (0.5, 0.25, 1.0, 0.375)  # thresholds 0.5, 0.75, 1.75, 2.125


def around_learned(dtype: torch.dtype) -> Tensor:
    """The thresholds, their neighbours to 3 ulp, and eighths on both sides."""
    ties = torch.tensor(Learned(GAPS).thresholds, dtype=dtype)
    values, up, down = [ties, torch.arange(-16, 33, dtype=dtype) / 8], ties, ties
    for _ in range(3):
        up = up.nextafter(torch.full_like(up, math.inf))
        down = down.nextafter(torch.full_like(down, -math.inf))
        values += [up, down]
    return torch.cat(values)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bounds", [None, (0, 4), (0, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learned_total_counts_the_thresholds_reached(
    signed: bool, bounds: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    spec = NeuronSpec(Learned(GAPS), signed=signed, initial=0.0, bounds=bounds)
    most = 4 if bounds is None else bounds[1]
    y, total = (
        grid.flatten()
        for grid in torch.meshgrid(
            around_learned(dtype), torch.arange(most + 1, dtype=dtype), indexing="ij"
        )
    )
    count = sum((y >= threshold).to(dtype) for threshold in Learned(GAPS).thresholds)
    assert isinstance(count, Tensor)
    count = count.clamp(max=most)
    expected = count if signed else torch.maximum(count, total)
    for step in (totals_step, totals_step_literal):
        assert torch.equal(step(y, total, spec), expected)
    assert (expected != total).any()


@pytest.mark.parametrize("step", [totals_step, totals_step_literal])
@pytest.mark.parametrize(
    "spec",
    [
        NeuronSpec(Learned(GAPS)),
        NeuronSpec(Learned(GAPS), firing=Firing.CASCADE, initial=0.0),
        NeuronSpec(Learned(GAPS, (1, 1, 2, 1)), initial=0.0),
        NeuronSpec(Learned(GAPS), reset=Reset.HARD, initial=0.0),
    ],
)
def test_a_learned_ladder_of_another_kind_is_refused(spec: NeuronSpec, step: Step) -> None:
    with pytest.raises(SpecError, match="initial=0, parallel firing and a Learned ladder"):
        step(torch.zeros(1), torch.zeros(1), spec)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64])
@pytest.mark.parametrize("width", range(1, 11))
def test_set_bits_are_those_that_python_counts(width: int, dtype: torch.dtype) -> None:
    sizes = torch.arange(2048)
    due = [(k & (2**width - 1)).bit_count() for k in range(2048)]
    assert set_bits(sizes.to(dtype), width).tolist() == due
    assert torch.equal(set_bits(sizes.to(dtype), width), set_bits_literal(sizes.to(dtype), width))


def test_what_is_no_number_has_no_events_either() -> None:
    broken = torch.tensor([math.nan, math.inf, 3.0])
    events = count_events(broken, Binary(4))
    assert events.isnan().tolist() == [True, True, False]
    assert events[2] == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_power_is_read_off_the_exponent(dtype: torch.dtype) -> None:
    powers = 2.0 ** torch.arange(0, 16, dtype=dtype)
    near = torch.cat(
        [torch.arange(0, 4096, dtype=dtype), powers, powers - 1, powers + 1, -powers * 0]
    )
    ladder = PowerOfTwo(16)
    assert torch.equal(largest_emission(near, ladder), largest_power(near.clamp(max=ladder.reach)))
    assert torch.equal(largest_power(powers + 0.5), powers)
    steps = largest_emission(near[::2], ladder)  # every second of a larger tensor
    assert torch.equal(steps, largest_power(near[::2].clamp(max=ladder.reach)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packets_are_what_is_not_zero(dtype: torch.dtype) -> None:
    emitted = torch.randint(-3, 4, (7, 5, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert count_packets(emitted) == torch.count_nonzero(emitted)
    assert count_packets(emitted.movedim(0, 2)) == torch.count_nonzero(emitted)


def test_numbers_that_lie_otherwise_in_memory_warn_nobody(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """torch warns of a search through such numbers, once in a process unless told to always."""
    y = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).mul_(4).T
    spec = NeuronSpec(Learned((1.0, 0.5, 2.0)), signed=True, initial=0.0, bounds=(0, 3))
    torch.set_warn_always(True)
    try:
        found = totals_step(y, torch.zeros(5, 4), spec)
    finally:
        torch.set_warn_always(False)
    assert torch.equal(found, totals_step(y.contiguous(), torch.zeros(5, 4), spec))
    assert not list(recwarn)
