"""Multi-threshold neurons: the dynamics of one time step.

One step of a layer with potential v, running total Y and step Δ::

    charge   IF h = v + I  |  LIF, PLIF h = v + (I − v)/τ, or v − v/τ + I without decay_input
    fire     parallel s_i = [h ≥ θ_i], o = Σ w_i s_i  |  cascade: each threshold sees what is left
             signed: the mirrored ladder looks at 2 v0 − h; both directions fire at equality
             bounds: a threshold that would carry Y + o out of [lo, hi]·Δ does not fire
    reset    soft v = h − o  |  hard v = 0 where anything fired
             its gradient: none (detach_reset), or that of the spikes

The same IF neuron in terms of its totals, exact to the last bit, is in ``totals``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SpecError
from .ladder import Firing, Ladder, Learned, PowerOfTwo, Radix
from .spec import IF, Charge, NeuronSpec, Reset
from .surrogate import StraightThrough, spike, straight_through

_EXPONENTS = {
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}
"""The bits of a number that are its exponent: alone they are the largest power of two below it."""


class NeuronState(NamedTuple):
    """v: potential, in units of the current. total: emitted so far, in units of Δ."""

    v: Tensor
    total: Tensor


def initial_state(current: Tensor, spec: NeuronSpec, delta: Tensor | float) -> NeuronState:
    """The state before the first step, shaped and placed like ``current``.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> initial_state(torch.zeros(2), NeuronSpec(Uniform(1)), 4.0).v.tolist()
        [2.0, 2.0]
    """
    zero = torch.zeros_like(current)
    return NeuronState(zero + spec.initial * _like(delta, current), zero)


def mt_step(
    state: NeuronState,
    current: Tensor,
    spec: NeuronSpec,
    delta: Tensor | float,
    decay: Tensor | None = None,
) -> tuple[Tensor, NeuronState]:
    """One time step: spikes that carry their value (multiples of Δ), and the next state.

    The closed form where there is one (integer ladders; no surrogate, or straight-through; no hard
    reset within a cascade), else ``mt_step_literal``. Both fire at equality, so a charge exactly
    halfway between two levels rounds up, and a signed neuron left exactly there (h = 0 with
    v0 = Δ/2) takes back and re-emits one level for ever, where ST-BIF (fires down at h < 0 only)
    and ``totals_step`` (half to even) rest. The gradient does not pass through what the thresholds
    of a cascade leave to the next, nor through detached resets.

    Shapes: ``current`` and both state tensors equal; ``delta`` broadcasts (per channel [C, 1, 1]).
    Units: ``decay`` is 1/τ of a PLIF neuron; None takes the one in ``spec.charge``.
    Raises: SpecError: a `Radix` ladder, whose thresholds hang on the step.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> spec, current = NeuronSpec(Uniform(3)), torch.tensor([0.25, 1.0, 9.0])
        >>> spikes, state = mt_step(initial_state(current, spec, 0.5), current, spec, 0.5)
        >>> spikes.tolist(), state.v.tolist()
        ([0.5, 1.0, 1.5], [0.0, 0.25, 7.75])
    """
    in_cascade = spec.rule is Firing.CASCADE and spec.reset is Reset.HARD
    smooth = not (spec.surrogate is None or isinstance(spec.surrogate, StraightThrough))
    if in_cascade or smooth or isinstance(spec.ladder, Learned):
        return mt_step_literal(state, current, spec, delta, decay)
    return _step(_count_closed, state, current, spec, delta, decay)


def mt_step_literal(
    state: NeuronState,
    current: Tensor,
    spec: NeuronSpec,
    delta: Tensor | float,
    decay: Tensor | None = None,
) -> tuple[Tensor, NeuronState]:
    """``mt_step`` threshold by threshold: the reference, and the path of per-threshold surrogates.

    What a cascade leaves after emitting o is compared as h ≥ o + θ rather than h − o ≥ θ: the same
    number, without the rounding of a float residual.

    Example:
        >>> from mt_convert.neurons.ladder import PowerOfTwo
        >>> spec, current = NeuronSpec(PowerOfTwo(3)), torch.tensor([1.75, 2.75, 9.0])
        >>> mt_step_literal(initial_state(current, spec, 1.0), current, spec, 1.0)[0].tolist()
        [2.0, 2.0, 4.0]
    """
    return _step(_count_literal, state, current, spec, delta, decay)


_Count = Callable[[Tensor, Tensor, NeuronSpec, Tensor, float], Tensor]


def _step(
    count: _Count,
    state: NeuronState,
    current: Tensor,
    spec: NeuronSpec,
    delta: Tensor | float,
    decay: Tensor | None,
) -> tuple[Tensor, NeuronState]:
    """Charge, fire and reset, with ``count`` telling the emission of one direction."""
    if isinstance(spec.ladder, Radix):
        raise SpecError(
            f"mt_step: {spec.ladder}; a digit hangs on its place in the window: use simulate with "
            "whole_window=True, or fixed_threshold_step"
        )
    step, (lo, hi) = _like(delta, current), spec.limits
    h = _charge(state.v, current, spec.charge, decay)
    room = hi - state.total
    ways = [(h, room, 0.0)]
    if spec.signed:  # 2 v0 − h ≥ θ as −h ≥ θ − 2 v0, which rounds nothing away
        ways.append((-h, state.total - lo, 2 * spec.initial))
    up, *down = [count(x, room, spec, step, shift) for x, room, shift in ways]
    emitted = up - down[0] if down else up
    if isinstance(spec.surrogate, StraightThrough):
        y = h / step
        emitted = straight_through(emitted.detach(), y, window(y.detach(), state.total, spec))
    spikes = emitted * step
    if spec.reset is Reset.SOFT:
        v = h - (spikes.detach() if spec.detach_reset else spikes)
    elif spec.detach_reset:
        v = torch.where(emitted == 0, h, torch.zeros_like(h))
    else:
        v = h * (1 - _reset_mask(h, emitted, spec, step))
    return spikes, NeuronState(v, state.total + emitted.detach())


def _reset_mask(h: Tensor, emitted: Tensor, spec: NeuronSpec, step: Tensor) -> Tensor:
    """1 where anything fired, with the gradient of the lowest threshold's spike."""
    lowest, fired = spec.ladder.thresholds[0], (emitted != 0).to(h.dtype)
    lowest_spikes = spike(h / step - lowest, spec.surrogate)
    if spec.signed:
        lowest_spikes = lowest_spikes + spike(2 * spec.initial - h / step - lowest, spec.surrogate)
    return fired + (lowest_spikes - lowest_spikes.detach())


def _charge(v: Tensor, current: Tensor, charge: Charge, decay: Tensor | None) -> Tensor:
    """The potential before firing."""
    if isinstance(charge, IF):
        return v + current
    leak = 1 / charge.tau if decay is None else decay
    return v + (current - v) * leak if charge.decay_input else v - v * leak + current


def _count_literal(h: Tensor, room: Tensor, spec: NeuronSpec, step: Tensor, shift: float) -> Tensor:
    """The emission of one direction in Δ, one threshold at a time, all lowered by ``shift``."""
    ladder = spec.ladder
    surrogate = None if isinstance(spec.surrogate, StraightThrough) else spec.surrogate
    count, unbounded = torch.zeros_like(h), spec.bounds is None
    if spec.rule is Firing.PARALLEL:
        level = 0.0
        for threshold, weight in zip(ladder.thresholds, ladder.weights, strict=True):
            level += weight
            fired = spike((h - (threshold - shift) * step) / step, surrogate)
            count = count + weight * (fired if unbounded else fired * (level <= room))
        return count
    for threshold in ladder.cascade:
        reached = count.detach() + threshold
        fired = spike((h - (reached - shift) * step) / step, surrogate)
        if not unbounded:
            fired = fired * (reached <= room)
        if spec.reset is Reset.HARD:  # the first spike clears the potential
            fired = fired * (count == 0)
        count = count + threshold * fired
    return count


def _count_closed(h: Tensor, room: Tensor, spec: NeuronSpec, step: Tensor, shift: float) -> Tensor:
    """The same in closed form: ⌊h/Δ + shift⌋ within reach and room, as the ladder can emit it."""
    with torch.no_grad():
        reach = spec.ladder.reach
        count = (h / step + shift).floor().clamp(0, reach)
        above, below = h >= (count + 1 - shift) * step, h < (count - shift) * step
        count = (count + above.to(h.dtype) - below.to(h.dtype)).clamp(0, reach)  # rounding mended
        return largest_emission(torch.minimum(count, room), spec.ladder)


def window(h: Tensor, total: Tensor, spec: NeuronSpec) -> Tensor:
    """Where the emission answers to h under a straight-through gradient: [½, reach + ½], or as far
    as the bounds leave room; of a signed neuron in either direction.

    Units: h, the potential before firing, and the total so far in Δ.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> window(torch.tensor([0.25, 0.5, 2.5, 3.0]), torch.zeros(4), NeuronSpec(Uniform(2)))
        tensor([False,  True,  True, False])
    """
    lo, hi = spec.limits
    up = _window(h, hi - total, spec)
    return up | _window(2 * spec.initial - h, total - lo, spec) if spec.signed else up


def _window(y: Tensor, room: Tensor, spec: NeuronSpec) -> Tensor:
    """The window of one direction."""
    cap = room.clamp(max=spec.ladder.reach)
    return (y >= 0.5) & (y <= cap + 0.5) & (cap > 0)


def largest_emission(distance: Tensor, ladder: Ladder) -> Tensor:
    """The largest emission of an integer ladder that does not pass ``distance``, whole and ≥ 0.

    Example:
        >>> largest_emission(torch.tensor([0.0, 3.0, 5.0, 99.0]), PowerOfTwo(4)).tolist()
        [0.0, 2.0, 4.0, 8.0]
    """
    near = distance.clamp(max=ladder.reach)
    if not isinstance(ladder, PowerOfTwo):
        return near
    if near.dtype in _EXPONENTS and not near.requires_grad and not torch.compiler.is_compiling():
        whole, exponent = _EXPONENTS[near.dtype]
        return near.view(whole).bitwise_and(exponent).view(near.dtype)  # the rest of it is 0
    return largest_power(near)


def largest_power(near: Tensor) -> Tensor:
    """The largest power of two that does not pass a number; 0 of 0: by its logarithm."""
    mantissa, _ = torch.frexp(near)  # near = mantissa · 2^e with mantissa in [½, 1)
    return torch.where(near > 0, near / (2 * mantissa), torch.zeros_like(near))


def _like(delta: Tensor | float, current: Tensor) -> Tensor:
    """Δ as a tensor of the current's type and device."""
    return torch.as_tensor(delta, dtype=current.dtype, device=current.device)
