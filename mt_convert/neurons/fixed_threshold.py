"""The radix neuron that a chip runs: one fixed ladder of thresholds, a membrane that multiplies.

While it listens, V <- R V + sum_j w_j s_j[t]: spikes are plain digits, none is worth more than
another, and after T steps V = sum_j w_j q_j. For n = 1 the membrane doubles, which is a shift. Then
it speaks, from z = |clamp(V/Δ, lo, hi)| + ½ and with θ = R^(T-1), sign for sign::

    s = clamp(floor(z/θ), 0, n),    z <- R (z - θ s)

z is kept in float64, and where it is exactly an odd whole number 2^-30 less: so halves go to even.
Its digits are those of `ladder.Radix`, to the last one. A neuron of `UnsignedRadix` speaks the
digits of V/Δ - lo; what is odd is then the level that z + lo stands for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SpecError
from .ladder import Radix
from .spec import NeuronSpec

_BELOW = 2.0**-30  # less than any digit can see, more than float64 loses


class Speaking(NamedTuple):
    """What is left to be said, in float64 and in levels, and the sign of all of it."""

    z: Tensor
    sign: Tensor


def listen(v: Tensor, arriving: Tensor, base: int) -> Tensor:
    """The membrane after one more step of digits.

    Example:
        >>> v = torch.zeros(1)
        >>> for digit in (1.0, 0.0, 1.0):
        ...     v = listen(v, torch.tensor([digit]), 2)
        >>> v.tolist()
        [5.0]
    """
    return v * base + arriving


def start_speaking(y: Tensor, spec: NeuronSpec) -> Speaking:
    """The state behind the window in which a neuron listened.

    Units: ``y`` in levels, without the initial potential.
    Raises:
        SpecError: a ladder that is not radix; learned gaps, whose thresholds no doubling membrane
            compares with.

    Example:
        >>> spec = NeuronSpec(Radix(1, steps=2), bounds=(0, 3))
        >>> start_speaking(torch.tensor([0.5, 1.5, 9.0]), spec).z.tolist()
        [0.9999999990686774, 2.0, 3.5]
    """
    _ladder(spec)
    low, high = spec.limits
    lowest = low if spec.signed or spec.start else max(low, 0)
    level = y.double().clamp(lowest, high) - spec.start
    z = level.abs() + 0.5
    odd = (z + spec.start).remainder(2) == 1
    return Speaking(torch.where(odd, z - _BELOW, z), level.sign())


def fixed_threshold_step(state: Speaking, spec: NeuronSpec) -> tuple[Tensor, Speaking]:
    """The digits of one step, threshold by threshold, and what is left.

    Returns: digits -n … n, float64.

    Example:
        >>> spec = NeuronSpec(Radix(1, steps=4), bounds=(0, 15))
        >>> state, digits = start_speaking(torch.tensor([10.0]), spec), []
        >>> for _ in range(4):
        ...     digit, state = fixed_threshold_step(state, spec)
        ...     digits.append(int(digit))
        >>> digits
        [1, 0, 1, 0]
    """
    ladder = _ladder(spec)
    assert ladder.steps is not None
    theta = float(ladder.base ** (ladder.steps - 1))
    fired = torch.zeros_like(state.z)
    for threshold in ladder.thresholds:
        fired = fired + (state.z >= threshold * theta).to(state.z.dtype)
    return fired * state.sign, state._replace(z=(state.z - theta * fired) * ladder.base)


def _ladder(spec: NeuronSpec) -> Radix:
    """The ladder, if a membrane that multiplies can speak it."""
    ladder = spec.ladder
    if not isinstance(ladder, Radix) or ladder.steps is None:
        raise SpecError(f"a fixed threshold speaks the digits of Radix(n, steps=T), not {ladder}")
    if ladder.gaps:
        raise SpecError(
            f"Radix({ladder.n}) with learned gaps: the membrane multiplies what is left, which "
            "needs equidistant thresholds; its digits are looked up in a table of thresholds"
        )
    return ladder
