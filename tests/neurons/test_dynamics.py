"""One step of the neurons: published rules, conservation, resets, leaks and gradients.

Inputs are multiples of 1/64 and Δ a power of two, so that float sums are exact and ``torch.equal``
may be asked for; the tests on ordinary floats say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mt_convert.errors import SpecError
from mt_convert.neurons.dynamics import NeuronState, initial_state, mt_step, mt_step_literal
from mt_convert.neurons.ladder import Binary, Firing, Ladder, Learned, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import IF, LIF, PLIF, NeuronSpec, Reset
from mt_convert.neurons.surrogate import (
    ATan,
    Rectangular,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangular,
)

DELTA = 0.25
Step = Callable[[NeuronState, Tensor, NeuronSpec, float], tuple[Tensor, NeuronState]]
UNIFORM_N = (1, 2, 3, 4, 8)


def dyadic(
    seed: int, *shape: int, low: int = -128, high: int = 256, unit: float = 1 / 64
) -> Tensor:
    """Random multiples of ``unit`` in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).double() * unit


def run(
    spec: NeuronSpec, currents: Tensor, delta: float = DELTA, step: Step = mt_step
) -> tuple[Tensor, NeuronState]:
    """Spikes [T, …] and the last state."""
    state, spikes = initial_state(currents[0], spec, delta), []
    for current in currents:
        fired, state = step(state, current, spec, delta)
        spikes.append(fired)
    return torch.stack(spikes), state


def floor_quantizer(currents: Tensor, levels: int, delta: float, leak: float = 1.0) -> Tensor:
    """Δ·clip(⌊h/Δ⌋, 0, levels) with soft reset, v0 = Δ/2: the independent reference."""
    v, out = torch.full_like(currents[0], delta / 2), []
    for current in currents:
        h = leak * v + current
        out.append(delta * (h / delta).floor().clamp(0, levels))
        v = h - out[-1]
    return torch.stack(out)


def explicit_cascade(currents: Tensor, thresholds: list[float], v0: float) -> Tensor:
    """A float residual handed from threshold to threshold, as the papers write it."""
    v, out = torch.full_like(currents[0], v0), []
    for current in currents:
        v, emitted = v + current, torch.zeros_like(v)
        for threshold in thresholds:
            fired = (v >= threshold) * threshold
            v, emitted = v - fired, emitted + fired
        out.append(emitted)
    return torch.stack(out)


# ---- the equivalences between parallel, cascade and the floor quantizer


@pytest.mark.parametrize("n", UNIFORM_N)
@pytest.mark.parametrize("leak", [1.0, 0.5])
@pytest.mark.parametrize("step", [mt_step, mt_step_literal])
def test_uniform_parallel_equals_uniform_cascade_equals_the_floor_quantizer(
    n: int, leak: float, step: Step
) -> None:
    currents = dyadic(n, 6, 2000)
    charge = IF() if leak == 1.0 else LIF(2.0, decay_input=False)
    parallel = NeuronSpec(Uniform(n), Firing.PARALLEL, charge)
    cascade = NeuronSpec(Uniform(n), Firing.CASCADE, charge)
    expected = floor_quantizer(currents, n, DELTA, leak)
    assert expected.unique().numel() == n + 1
    assert torch.equal(run(parallel, currents, step=step)[0], expected)
    assert torch.equal(run(cascade, currents, step=step)[0], expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [mt_step, mt_step_literal])
def test_binary_cascade_is_the_floor_quantizer_with_two_to_the_b_minus_one_levels(
    bits: int, step: Step
) -> None:
    currents = dyadic(bits, 6, 2000)
    spikes = run(NeuronSpec(Binary(bits)), currents, step=step)[0]
    assert torch.equal(spikes, floor_quantizer(currents, 2**bits - 1, DELTA))
    descending = [DELTA * 2**k for k in range(bits - 1, -1, -1)]
    assert torch.equal(spikes, explicit_cascade(currents, descending, DELTA / 2))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ascending_order_breaks_the_binary_cascade(bits: int) -> None:
    currents = dyadic(bits, 6, 2000)
    ascending = explicit_cascade(currents, [DELTA * 2**k for k in range(bits)], DELTA / 2)
    assert not torch.equal(run(NeuronSpec(Binary(bits)), currents)[0], ascending)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_descending_distinct_thresholds_have_n_times_n_plus_one_over_two_levels(n: int) -> None:
    currents = dyadic(n, 6, 2000)
    spec = NeuronSpec(Learned((1.0,) * n), Firing.CASCADE)
    assert torch.equal(run(spec, currents)[0], floor_quantizer(currents, n * (n + 1) // 2, DELTA))


@pytest.mark.parametrize(("time_steps", "n"), list(product((1, 2, 4, 8), (1, 2, 4))))
def test_level_law_a_constant_current_is_quantized_to_n_times_t_levels(
    time_steps: int, n: int
) -> None:
    z = dyadic(time_steps * 10 + n, 5000, low=-64, high=64 * 6)
    spikes = run(NeuronSpec(Uniform(n)), z.expand(time_steps, -1), delta=1.0)[0]
    expected = (z * time_steps + 0.5).floor().clamp(0, n * time_steps) / time_steps
    assert expected.unique().numel() == n * time_steps + 1
    assert torch.equal(spikes.mean(0), expected)


def test_power_of_two_emits_only_the_largest_threshold_reached() -> None:
    h = torch.tensor([0.9, 1.0, 1.9, 2.0, 3.9, 4.0, 7.9, 8.0, 99.0])
    spikes = run(NeuronSpec(PowerOfTwo(4), initial=0.0), h[None], delta=1.0)[0][0]
    assert spikes.tolist() == [0, 1, 1, 2, 2, 4, 4, 8, 8]


def test_learned_gaps_emit_equal_levels_at_unequal_thresholds() -> None:
    spec = NeuronSpec(Learned((0.5, 1.25)), initial=0.0)
    h = torch.tensor([[0.49, 0.5, 1.7, 1.75, 9.0]])
    assert run(spec, h, delta=2.0)[0].tolist() == [[0, 0, 2.0, 2.0, 4.0]]
    assert run(spec, h, delta=1.0)[0].tolist() == [[0, 1.0, 1.0, 2.0, 2.0]]


def test_below_the_smallest_threshold_the_neuron_stays_silent() -> None:
    spec = NeuronSpec(Uniform(4), signed=True, initial=0.25)
    state = NeuronState(torch.zeros(2), torch.zeros(2))
    h = torch.tensor([1.0, -0.5])  # the lowest threshold, and its mirror image about v0
    inwards = h.nextafter(torch.zeros(2))
    for step in (mt_step, mt_step_literal):
        assert step(state, h, spec, 1.0)[0].tolist() == [1, -1]
        assert step(state, inwards, spec, 1.0)[0].tolist() == [0, 0]


# ---- published spike totals of the communicating pair (H-MT)

TOTALS = [
    ([4, 2, -3, 6, -2, -6], 3, (9, 0), (12, 11)),
    ([9, 1.5, 8.5, -6, -4, -5], 3, (18, 0), (18, 14)),
    ([-4, 1, 1, 1, 1], 1, (0, 2), (2, 2)),
]


@pytest.mark.parametrize(("inputs", "bits", "alone", "paired"), TOTALS)
def test_a_signed_neuron_reproduces_the_published_totals_with_communication(
    inputs: list[float], bits: int, alone: tuple[int, int], paired: tuple[int, int]
) -> None:
    currents = torch.tensor(inputs, dtype=torch.float64)[:, None]
    spikes = run(NeuronSpec(Binary(bits), signed=True), currents, delta=1.0)[0]
    assert (spikes.clamp(min=0).sum(), -spikes.clamp(max=0).sum()) == paired


@pytest.mark.parametrize(("inputs", "bits", "alone", "paired"), TOTALS)
def test_two_unsigned_neurons_reproduce_the_published_totals_without_communication(
    inputs: list[float], bits: int, alone: tuple[int, int], paired: tuple[int, int]
) -> None:
    currents = torch.tensor(inputs, dtype=torch.float64)[:, None]
    spec = NeuronSpec(Binary(bits))
    positive, negative = (run(spec, sign * currents, delta=1.0)[0].sum() for sign in (1, -1))
    assert (positive, negative) == alone


def test_a_signed_neuron_is_the_communicating_pair_whose_potentials_sum_to_the_threshold() -> None:
    spec, currents = NeuronSpec(Binary(3), signed=True), dyadic(5, 12, 500, low=-900, high=900)
    state = initial_state(currents[0], spec, 1.0)
    positive = negative = torch.full_like(currents[0], 0.5)
    for current in currents:
        spikes, state = mt_step(state, current, spec, 1.0)
        positive, negative = positive + current, negative - current
        up = explicit_cascade(positive[None], [4.0, 2.0, 1.0], 0.0)[0]
        down = explicit_cascade(negative[None], [4.0, 2.0, 1.0], 0.0)[0]
        positive, negative = positive - up + down, negative - down + up
        assert torch.equal(positive + negative, torch.ones_like(current))
        assert torch.equal(spikes, up - down)
        assert torch.equal(state.v, positive)


# ---- conservation, bounds, convergence

ladders = st.one_of(
    st.builds(Uniform, st.integers(1, 9)),
    st.builds(Binary, st.integers(1, 4)),
    st.builds(PowerOfTwo, st.integers(1, 4)),
    st.lists(st.sampled_from([0.75, 1.0, 1.25, 2.0]), min_size=1, max_size=4).map(
        lambda gaps: Learned(tuple(gaps))
    ),
)
trains = st.lists(st.integers(-640, 640), min_size=1, max_size=12)


def _exact(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None] / 64


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    ladder=ladders,
    train=trains,
    signed=st.booleans(),
    cascade=st.booleans(),
    bounds=st.sampled_from([None, (0, 15), (-8, 7), (None, 3)]),
    delta=st.sampled_from([0.25, 1.0, 4.0]),
)
def test_emitted_plus_residual_is_all_current_plus_the_initial_potential(
    ladder: Ladder,
    train: list[int],
    signed: bool,
    cascade: bool,
    bounds: tuple[int | None, int | None] | None,
    delta: float,
) -> None:
    firing = Firing.CASCADE if cascade else Firing.PARALLEL
    if firing not in ladder.allowed_firing:
        firing = ladder.natural_firing
    spec, currents = NeuronSpec(ladder, firing, signed=signed, bounds=bounds), _exact(train)
    for step in (mt_step, mt_step_literal):
        spikes, state = run(spec, currents, delta, step)
        assert torch.equal(spikes.sum(0) + state.v, currents.sum(0) + delta / 2)
        assert torch.equal(spikes.sum(0), state.total * delta)
        totals = (spikes / delta).cumsum(0)
        lo, hi = spec.limits
        assert bool((totals >= lo).all())
        assert bool((totals <= hi).all())


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    ladder=ladders,
    train=trains,
    signed=st.booleans(),
    hard=st.booleans(),
    charge=st.sampled_from([IF(), LIF(2.0), LIF(4.0, decay_input=False), PLIF(2.0)]),
    bounds=st.sampled_from([None, (0, 3), (-4, 5)]),
)
def test_closed_form_equals_the_literal_rule(
    ladder: Ladder,
    train: list[int],
    signed: bool,
    hard: bool,
    charge: IF | LIF | PLIF,
    bounds: tuple[int | None, int | None] | None,
) -> None:
    reset = Reset.HARD if hard else Reset.SOFT
    spec = NeuronSpec(ladder, None, charge, reset, signed, bounds=bounds)
    currents = _exact(train)
    fast, literal = run(spec, currents), run(spec, currents, step=mt_step_literal)
    assert torch.equal(fast[0], literal[0])
    assert torch.equal(fast[1].v, literal[1].v)
    assert torch.equal(fast[1].total, literal[1].total)


@pytest.mark.parametrize("ladder", [Uniform(15), Binary(4), PowerOfTwo(4)], ids=repr)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_form_equals_the_literal_rule_at_every_float_next_to_a_threshold(
    ladder: Ladder, signed: bool, dtype: torch.dtype
) -> None:
    for delta in (0.1, 1 / 3, 0.7, 1e-3, 123.4):
        step = torch.tensor(delta, dtype=dtype)
        h = torch.arange(-18, 19, dtype=dtype) * step
        near, up, down = [h], h, h
        for _ in range(4):
            up = up.nextafter(torch.full_like(up, math.inf))
            down = down.nextafter(torch.full_like(down, -math.inf))
            near += [up, down]
        current, spec = torch.cat(near), NeuronSpec(ladder, signed=signed, initial=0.0)
        state = NeuronState(torch.zeros_like(current), torch.zeros_like(current))
        fast, literal = (rule(state, current, spec, step)[0] for rule in (mt_step, mt_step_literal))
        assert torch.equal(fast, literal)
        expected = sum((current >= k * step).to(dtype) for k in range(1, 16))
        if isinstance(ladder, Uniform | Binary) and not signed:
            assert torch.equal(fast, expected * step)


@pytest.mark.parametrize("ladder", [Uniform(1), Uniform(3), Binary(2), PowerOfTwo(3)], ids=repr)
@pytest.mark.parametrize("bounds", [(0, 15), (-8, 7)])
def test_a_signed_bounded_total_settles_at_the_quantized_sum_and_an_unsigned_one_need_not(
    ladder: Ladder, bounds: tuple[int, int]
) -> None:
    head = dyadic(3, 4, 800, low=-600, high=700) + torch.tensor([1 / 128, 0, 0, 0])[:, None]
    currents = torch.cat([head, torch.zeros(40, 800, dtype=torch.float64)])  # never at a tie
    expected = head.sum(0).round().clamp(*bounds)
    signed = run(NeuronSpec(ladder, signed=True, bounds=bounds), currents, 1.0)[1].total
    unsigned = run(NeuronSpec(ladder, bounds=bounds), currents, 1.0)[1].total
    assert torch.equal(signed, expected)
    assert bool((unsigned >= expected.clamp(min=0)).all())
    assert not torch.equal(unsigned, expected)


def test_a_signed_neuron_left_exactly_between_two_levels_alternates_for_ever() -> None:
    currents = torch.tensor([0.5, 0.0, 0.0, 0.0])[:, None]
    spikes = run(NeuronSpec(Uniform(1), signed=True, bounds=(0, 15)), currents, 1.0)[0]
    assert spikes.flatten().tolist() == [1, -1, 1, -1]


# ---- resets and leaks


def test_hard_reset_clears_the_potential_wherever_anything_fired() -> None:
    spec = NeuronSpec(Uniform(3), reset=Reset.HARD, initial=0.0)
    spikes, state = run(spec, torch.tensor([[0.75, 1.5, 9.0]]), delta=1.0)
    assert spikes.tolist() == [[0, 1, 3]]
    assert state.v.tolist() == [0.75, 0, 0]


def test_hard_reset_ends_a_cascade_at_its_first_spike() -> None:
    h = torch.tensor([[0.75, 1.5, 3.0, 6.0]])
    binary = NeuronSpec(Binary(3), reset=Reset.HARD, initial=0.0)
    uniform = NeuronSpec(Uniform(3), Firing.CASCADE, reset=Reset.HARD, initial=0.0)
    for step in (mt_step, mt_step_literal):
        assert run(binary, h, 1.0, step)[0].tolist() == [[0, 1, 2, 4]]
        assert run(uniform, h, 1.0, step)[0].tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("tau", [1.5, 2.0, 3.0])
def test_lif_and_plif_charge_by_their_formulas(tau: float) -> None:
    v, current = dyadic(1, 50, low=-16, high=16), dyadic(2, 50, low=-64, high=16)
    state, silent = NeuronState(v, torch.zeros_like(v)), Uniform(1)
    charged = v + (current - v) / tau
    leaking = v * (1 - 1 / tau) + current
    for charge, expected in (
        (LIF(tau), charged),
        (LIF(tau, decay_input=False), leaking),
        (PLIF(tau), charged),
        (PLIF(tau, decay_input=False), leaking),
    ):
        neuron = MTNeuron(NeuronSpec(silent, charge=charge), delta=100.0)
        assert torch.allclose(neuron(current, state)[1].v, expected, rtol=1e-6, atol=1e-6)
        pure = mt_step(state, current, neuron.spec, 100.0)[1].v
        assert torch.allclose(pure, expected, rtol=1e-12, atol=1e-12)


def test_plif_starts_at_its_tau_and_its_w_receives_a_gradient() -> None:
    spec = NeuronSpec(Uniform(2), charge=PLIF(3.0), surrogate=ATan(2.0))
    neuron = MTNeuron(spec, delta=1.0)
    assert neuron.w.sigmoid().item() == pytest.approx(1 / 3)
    assert MTNeuron(NeuronSpec(Uniform(2), charge=PLIF(2.0)), 1.0).w.item() == 0.0
    current, state = torch.tensor([2.0, 0.25]), None
    spikes, state = neuron(current, state)
    spikes.sum().backward()
    rate, v0 = 1 / 3, 0.5
    h = v0 + rate * (current - v0)
    g = ATan(2.0).derivative(h - 1) + ATan(2.0).derivative(h - 2)
    expected = (g * (current - v0)).sum() * rate * (1 - rate)
    assert neuron.w.grad is not None
    assert neuron.w.grad.item() == pytest.approx(expected.item(), rel=1e-5)


# ---- gradients

SHAPES: list[Surrogate] = [Rectangular(1.0), ATan(2.0), Sigmoid(4.0), Triangular(1.0)]


def _gradient(spec: NeuronSpec, h: Tensor, delta: float, step: Step = mt_step) -> Tensor:
    current = h.clone().requires_grad_()
    state = NeuronState(torch.zeros_like(h), torch.zeros_like(h))
    step(state, current, spec, delta)[0].sum().backward()
    assert current.grad is not None
    return current.grad


@pytest.mark.parametrize("surrogate", SHAPES, ids=repr)
@pytest.mark.parametrize(
    "ladder", [Uniform(3), PowerOfTwo(3), Learned((0.5, 1.25), (1.0, 2.0))], ids=repr
)
def test_parallel_gradient_is_the_weighted_sum_over_the_thresholds(
    surrogate: Surrogate, ladder: Ladder
) -> None:
    h, delta = torch.linspace(-2, 6, 101, dtype=torch.float64), 0.5
    expected = torch.zeros_like(h)
    for threshold, weight in zip(ladder.thresholds, ladder.weights, strict=True):
        expected += weight * surrogate.derivative(h / delta - threshold)
    spec = NeuronSpec(ladder, Firing.PARALLEL, surrogate=surrogate)
    assert torch.allclose(_gradient(spec, h, delta), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("surrogate", SHAPES, ids=repr)
def test_cascade_gradient_looks_at_what_each_threshold_was_left(surrogate: Surrogate) -> None:
    h = torch.linspace(-2, 9, 101, dtype=torch.float64)
    left, expected = h.clone(), torch.zeros_like(h)
    for threshold in (4.0, 2.0, 1.0):
        expected = expected + threshold * surrogate.derivative(left - threshold)
        left = left - threshold * (left >= threshold)
    spec = NeuronSpec(Binary(3), surrogate=surrogate)
    assert torch.allclose(_gradient(spec, h, 1.0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [mt_step, mt_step_literal])
def test_straight_through_gradient_is_one_from_half_a_step_to_n_and_a_half(step: Step) -> None:
    delta, n = 0.25, 3
    h = torch.tensor([-1.0, 0.124, 0.125, 0.5, 0.874, 0.875, 0.876, 5.0], dtype=torch.float64)
    gradient = _gradient(NeuronSpec(Uniform(n), surrogate=StraightThrough()), h, delta, step)
    assert gradient.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_straight_through_of_a_signed_neuron_covers_both_directions_once() -> None:
    h = torch.tensor([-2.6, -2.5, -1.0, 0.0, 0.5, 1.0, 3.5, 3.6], dtype=torch.float64)
    spec = NeuronSpec(Uniform(3), signed=True, surrogate=StraightThrough())
    assert _gradient(spec, h, 1.0).tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def test_signed_gradient_adds_the_mirrored_thresholds() -> None:
    h = torch.linspace(-4, 5, 91, dtype=torch.float64)
    g = Triangular(0.8)
    spec = NeuronSpec(Uniform(2), signed=True, surrogate=g)
    expected = torch.zeros_like(h)
    for k in (1, 2):
        expected += g.derivative(h - k) + g.derivative((1 - h) - k)
    assert torch.allclose(_gradient(spec, h, 1.0), expected, rtol=1e-9, atol=1e-12)


def test_a_bound_reached_lets_no_gradient_through() -> None:
    full = NeuronState(torch.zeros(1), torch.tensor([3.0]))
    for surrogate in (ATan(2.0), StraightThrough()):
        for bounds, expected in (((0, 3), 0.0), ((0, 9), 1.0)):
            current = torch.tensor([1.0], requires_grad=True)
            spec = NeuronSpec(Uniform(1), bounds=bounds, surrogate=surrogate)
            mt_step(full, current, spec, 1.0)[0].sum().backward()
            assert current.grad is not None
            assert current.grad.item() == expected


def test_straight_through_is_shut_at_the_bound_even_at_half_a_step() -> None:
    full, current = NeuronState(torch.zeros(1), torch.ones(1)), torch.tensor([0.5])
    current.requires_grad_()
    spec = NeuronSpec(Uniform(3), bounds=(0, 1), surrogate=StraightThrough())
    mt_step(full, current, spec, 1.0)[0].sum().backward()
    assert current.grad is not None
    assert current.grad.item() == 0


@pytest.mark.parametrize("reset", list(Reset))
def test_the_reset_is_detached_so_the_potential_carries_the_gradient_of_its_charge(
    reset: Reset,
) -> None:
    spec = NeuronSpec(Uniform(2), reset=reset, surrogate=ATan(2.0))
    current = torch.tensor([0.25, 1.0], requires_grad=True)
    _, state = mt_step(initial_state(current.detach(), spec, 1.0), current, spec, 1.0)
    state.v.sum().backward()
    assert current.grad is not None
    assert current.grad.tolist() == [1, 1 if reset is Reset.SOFT else 0]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("reset", [Reset.SOFT, Reset.HARD])
def test_a_reset_that_is_not_detached_passes_back_the_gradient_of_its_spikes(
    reset: Reset, signed: bool
) -> None:
    """After two steps, against the chain rule written out."""
    surrogate, delta, initial = Sigmoid(2.0), 0.5, 0.25
    spec = NeuronSpec(
        Uniform(3),
        reset=reset,
        signed=signed,
        initial=initial,
        surrogate=surrogate,
        detach_reset=False,
    )
    current = torch.randn(500, dtype=torch.float64).requires_grad_()
    before = initial_state(current, spec, delta)
    spikes, after = mt_step(before, current, spec, delta)
    (found,) = torch.autograd.grad(after.v.sum(), current)
    h = (current + initial * delta).detach()
    parts = [surrogate.derivative((h - k * delta) / delta) for k in (1, 2, 3)]
    mirrored = [surrogate.derivative(2 * initial - h / delta - k) for k in (1, 2, 3)]
    if reset is Reset.SOFT:  # v = h - o, o' = sum of g
        wanted = 1 - sum(parts) - (sum(mirrored) if signed else 0)
    else:  # v = h (1 - s), s' = g of the lowest threshold
        fired = (spikes.detach() != 0).double()
        slope = (parts[0] - (mirrored[0] if signed else 0)) / delta
        wanted = (1 - fired) - h * slope
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    detached, same = mt_step(before, current, replace(spec, detach_reset=True), delta)
    assert torch.equal(detached, spikes)
    assert torch.equal(same.v, after.v)


@pytest.mark.parametrize("surrogate", [*SHAPES, StraightThrough(), None], ids=repr)
def test_a_surrogate_changes_no_spike(surrogate: Surrogate | None) -> None:
    currents = dyadic(9, 6, 500)
    plain = NeuronSpec(Uniform(3), signed=True, bounds=(-4, 7))
    spec = NeuronSpec(Uniform(3), signed=True, bounds=(-4, 7), surrogate=surrogate)
    assert torch.equal(run(spec, currents)[0], run(plain, currents)[0])


def test_a_learned_step_receives_the_gradient_of_count_minus_position() -> None:
    neuron = MTNeuron(
        NeuronSpec(Uniform(3), initial=0.0, surrogate=StraightThrough()),
        nn.Parameter(torch.tensor(0.5)),
    )
    current = torch.tensor([0.8, 9.0])
    neuron(current)[0].sum().backward()
    inside, above = 1 - 0.8 / 0.5, 3.0  # count − h/Δ inside, the reach above
    assert isinstance(neuron.delta, nn.Parameter)
    assert neuron.delta.grad is not None
    assert neuron.delta.grad.item() == pytest.approx(inside + above)


# ---- the module, and what a spec refuses


def test_the_module_keeps_no_state_between_calls() -> None:
    neuron, current = MTNeuron(NeuronSpec(Uniform(2)), 1.0), torch.tensor([0.3, 1.2])
    first, state = neuron(current)
    assert torch.equal(neuron(current)[0], first)
    assert not torch.equal(neuron(current, state)[0], first)
    assert set(neuron.state_dict()) == {"delta"}


def test_a_step_per_channel_broadcasts_over_the_image() -> None:
    steps = torch.tensor([0.5, 2.0])[:, None, None]
    spikes, _ = MTNeuron(NeuronSpec(Uniform(4)), steps)(torch.full((3, 2, 4, 4), 1.5))
    assert spikes[:, 0].unique().tolist() == [1.5]
    assert spikes[:, 1].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: NeuronSpec(Binary(2), Firing.PARALLEL), "allowed is cascade"),
        (lambda: NeuronSpec(PowerOfTwo(2), Firing.CASCADE), "allowed is parallel"),
        (lambda: NeuronSpec(Uniform(2), reset="gone"), "soft or hard"),  # type: ignore[arg-type]
        (lambda: NeuronSpec(Uniform(2), initial=math.nan), "finite"),
        (lambda: NeuronSpec(Uniform(2), signed=True, initial=1.0), "below the smallest"),
        (lambda: NeuronSpec(Uniform(2), bounds=(1, 5)), "lo <= 0 <= hi"),
        (lambda: NeuronSpec(Learned((1.0,)), surrogate=StraightThrough()), "Rectangular"),
        (lambda: LIF(0.5), "at least 1"),
        (lambda: PLIF(1.0), "above 1"),
        (lambda: MTNeuron(NeuronSpec(Uniform(2)), 0.0), "above 0"),
        (lambda: MTNeuron(NeuronSpec(Uniform(2)), torch.tensor([1.0, math.nan])), "above 0"),
    ],
)
def test_a_meaningless_neuron_is_refused_with_what_is_allowed(
    build: Callable[[], object], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        build()
