"""What changed in a step, as events: what a run without multiplications passes on.

`shift_add` says what each layer does with them. Nothing here multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SpecError
from ..neurons.ladder import Digit, Firing
from ..neurons.spec import NeuronSpec

LEAST = -(1 << 31)  # int32: below every number


class Line(NamedTuple):
    """Events of a kind: worth a level shifted left by ``shift``, taken away if ``down``; ``image``:
    bits of the image's levels; ``step``: when they are emitted."""

    shift: int
    down: bool
    image: bool
    step: int = 0


class Value(NamedTuple):
    """Numbers (int32); how many events changed each in this step, None where no neuron's; and
    whether a change of it is coded spike by spike (bool) or by set bits."""

    numbers: Tensor
    events: dict[Line, Tensor] | None
    unary: Tensor


def events_of(
    change: Tensor, unary: Tensor, image: bool = False, step: int = 0
) -> dict[Line, Tensor]:
    """A change of levels as events: one per level where ``unary``, else one per set bit.

    Example:
        >>> events = events_of(torch.tensor([5, -3, 0]), torch.tensor([False, True, False]))
        >>> {(line.shift, line.down): counts.tolist() for line, counts in events.items()}
        {(0, False): [1, 0, 0], (1, False): [0, 0, 0], (2, False): [1, 0, 0], (0, True): [0, 3, 0]}
    """
    events: dict[Line, Tensor] = {}
    for down, size in ((False, change), (True, -change)):
        spikes = torch.where(unary, size, 0).clamp(min=0)
        bits = torch.where(unary, 0, size).clamp(min=0)
        if bool(spikes.any()):
            events[Line(0, down, image, step)] = spikes
        for shift in range(int(bits.max()).bit_length()):
            line = Line(shift, down, image, step)
            ones = torch.bitwise_and(torch.bitwise_right_shift(bits, shift), 1)
            events[line] = events[line] + ones if line in events else ones
    return events


def digit_events(change: Tensor, digit: Digit, step: int) -> dict[Line, Tensor]:
    """The digits of one step as events: as many as the digit is large, each worth its unit, where
    that is a shift; else one per set bit of the change.

    Example:
        >>> events = digit_events(torch.tensor([12, -4, 0]), Digit(3, 4), 1)
        >>> {(line.shift, line.down): counts.tolist() for line, counts in events.items()}
        {(2, False): [3, 0, 0], (2, True): [0, 1, 0]}
    """
    shift = digit.unit.bit_length() - 1
    if digit.unit != 1 << shift:
        return events_of(change, torch.zeros_like(change).bool(), step=step)
    digits = torch.bitwise_right_shift(change.abs(), shift)
    sides = {False: torch.where(change > 0, digits, 0), True: torch.where(change < 0, digits, 0)}
    return {
        Line(shift, down, False, step): side for down, side in sides.items() if bool(side.any())
    }


def gather_windows(planes: Tensor, places: Tensor, beyond: int) -> Tensor:
    """What the taps of each window meet; ``beyond`` where that is the border.

    Shapes: planes [batch, channels, *space], places [taps, windows] of `threshold_tables.windows`;
        returns [batch, channels, taps, windows].
    """
    flat = planes.flatten(2)
    flat = torch.cat([flat, flat.new_full((*flat.shape[:2], 1), beyond)], 2)
    return flat.index_select(2, places.flatten()).unflatten(2, places.shape)


def in_32_bits(numbers: Tensor) -> Tensor:
    """The same numbers as int32.

    Raises: SpecError: they do not fit.
    """
    if bool(((numbers > -LEAST - 1) | (numbers <= LEAST)).any()):
        raise SpecError("the sums of a pool pass 2^31: use fewer bits, or a smaller pool")
    return numbers.int()


def emit(spec: NeuronSpec, reaches: Callable[[Tensor], Tensor], total: Tensor) -> Tensor:
    """The running total after one step, threshold by threshold, as `totals_step_literal` has it.

    ``reached`` tells whether the input has come to a position of the total.

    Example:
        >>> from ..neurons.ladder import Binary
        >>> y = torch.tensor([2, 6, 99])
        >>> emit(NeuronSpec(Binary(3)), lambda k: y >= k, torch.tensor([0, 1, 2])).tolist()
        [2, 6, 9]
    """
    lo, hi = spec.limits

    def emission(fires: Callable[[Tensor], Tensor]) -> Tensor:
        out = torch.zeros_like(total)
        if spec.rule is Firing.CASCADE:
            for threshold in spec.ladder.cascade:
                there = out + int(threshold)
                out = torch.where(fires(there), there, out)
            return out
        for threshold, weight in zip(spec.ladder.thresholds, spec.ladder.weights, strict=True):
            distance = torch.full_like(total, int(threshold))
            out = torch.where(fires(distance), out + int(weight), out)
        return out

    up = emission(lambda k: reaches(total + k) & (total + k <= hi))
    if not spec.signed:
        return total + up
    down = emission(lambda k: ~reaches(total - k + 1) & (total - k >= lo))
    return total + up - down
