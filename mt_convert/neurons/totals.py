"""The IF neuron in terms of its running totals: exact to the last bit, ties included.

With y the cumulative input and S the running total of what was emitted, both in units of
Δ, the soft-reset neuron of ``neurons`` that starts at v0 = Δ/2 holds v = (y + ½ − S)Δ: whether a
threshold is reached depends on y and S alone. Comparing y itself loses nothing to a float residual,
and a threshold moved by one ulp at odd levels rounds half to even, as ``torch.round`` does.

A `Learned` ladder names its positions itself: position k is reached when y ≥ θ_k. Its neuron starts
at v0 = 0, for the thresholds of a quantizer with learned gaps lie where the levels change already.

A `Radix` ladder is run step by step as the `Digit` that it is there (`Radix.at`): trunc((q - S)/u)
units u, at most n on either side, are exact for whole numbers in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SpecError
from .dynamics import largest_emission
from .ladder import Binary, Digit, Firing, Ladder, Learned, PowerOfTwo, Radix, Uniform
from .spec import IF, LIF, NeuronSpec, Reset


def totals_step(
    y: Tensor, total: Tensor, spec: NeuronSpec, limits: tuple[Any, Any] | None = None
) -> Tensor:
    """The running total after one step, from the cumulative input: closed form.

    With q = clamp(round(y), lo, hi), half to even, the neuron emits the largest step of its ladder
    that does not pass q − total; an unsigned one never goes back. At T = 1 and full reach the total
    *is* the quantizer's output. Float32 or float64; ``bounds`` and ``total`` are whole numbers.
    With a `Learned` ladder q = clamp(Σ_k [y ≥ θ_k], lo, hi), and any distance is emitted whole.
    ``limits`` are lo and hi in place of those of ``spec``, numbers or tensors.

    Shapes: ``y`` and ``total`` equal. Units: both in Δ; ``y`` without the initial potential Δ/2.
    Returns: the new total.
    Raises: SpecError: not an IF neuron with soft reset; an integer ladder without v0 = Δ/2, or a
        `Learned` one without v0 = 0, parallel firing and weights of 1.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> spec = NeuronSpec(Uniform(3), signed=True, bounds=(0, 15))
        >>> y, total = torch.tensor([2.5, 9.0, -1.0]), torch.tensor([0.0, 8.0, 2.0])
        >>> totals_step(y, total, spec).tolist()
        [2.0, 9.0, 0.0]
    """
    _check_running(spec)
    low, high = spec.limits if limits is None else limits
    if isinstance(spec.ladder, Learned):
        reached = _count_reached(y, spec.ladder).clamp_(low, high)
        return reached if spec.signed else torch.maximum(total, reached)
    if isinstance(spec.ladder, Digit):
        n, unit = spec.ladder.n, spec.ladder.unit
        digit = _level(y, spec.ladder).clamp_(low, high).sub_(total).div_(unit).trunc_()
        return digit.clamp_(-n if spec.signed else 0, n).mul_(unit).add_(total)
    distance = y.round().clamp_(low, high).sub_(total)
    if not isinstance(spec.ladder, PowerOfTwo):  # any distance within reach is emitted whole
        reach = spec.ladder.reach
        return distance.clamp_(-reach if spec.signed else 0, reach).add_(total)
    new = total + largest_emission(distance.clamp(min=0), spec.ladder)
    return new - largest_emission((-distance).clamp(min=0), spec.ladder) if spec.signed else new


def totals_step_literal(y: Tensor, total: Tensor, spec: NeuronSpec) -> Tensor:
    """``totals_step`` threshold by threshold: the reference.

    Position k of the total is reached when y ≥ k − ½, moved one ulp up for odd k, which is
    round(y) ≥ k with half to even. Down, position k is reached when y is below that of k + 1. The
    position of a `Learned` ladder's k-th threshold is the threshold.

    Example:
        >>> from mt_convert.neurons.ladder import Binary
        >>> y = torch.tensor([2.5, 3.5, 99.0])
        >>> totals_step_literal(y, torch.zeros(3), NeuronSpec(Binary(3))).tolist()
        [2.0, 4.0, 7.0]
    """
    _check_running(spec)
    lo, hi = spec.limits
    if isinstance(spec.ladder, Learned):
        return _step_learned_literal(y, total, spec)
    place = position
    if isinstance(spec.ladder, Digit) and spec.ladder.gaps:
        place = partial(_learned_position, _thresholds(spec.ladder, y))
    up = _emission(spec, lambda k: (y >= place(total + k)) & (total + k <= hi), total)
    if not spec.signed:
        return total + up
    down = _emission(spec, lambda k: (y < place(total - k + 1)) & (total - k >= lo), total)
    return total + up - down


_BLOCK = 1 << 14  # inputs that stay in the cache while all thresholds pass


def literal_from_rest(y: Tensor, spec: NeuronSpec) -> Tensor:
    """`totals_step_literal` from a total of 0, each threshold compared with each input: the same,
    block by block, where one level is one threshold and they all look at once.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> y = torch.tensor([0.5, 1.5, -2.0, 99.0])
        >>> literal_from_rest(y, NeuronSpec(Uniform(3), bounds=(0, 3))).tolist()
        [0.0, 2.0, 0.0, 3.0]
    """
    _check_running(spec)
    ladder, (low, high) = spec.ladder, spec.limits
    learned, cascade = isinstance(ladder, Learned), spec.rule is Firing.CASCADE
    if not (isinstance(ladder, Uniform) or (learned and not cascade)):
        return totals_step_literal(y, torch.zeros_like(y), spec)
    up = int(min(high, ladder.n))
    down = int(min(-low, ladder.n)) if spec.signed and not learned else 0
    if learned:
        places = _thresholds(ladder, y).cpu()[:up]
    else:
        places = position(torch.arange(1 - down, up + 1, dtype=y.dtype))
    inputs = y.detach().cpu().contiguous().numpy()
    level = np.zeros(inputs.shape, inputs.dtype)
    for block, out in zip(*(_blocks(array) for array in (inputs, level)), strict=True):
        if cascade:
            _fire_in_turn(block, places.numpy(), down, out)
        else:
            _fire_at_once(block, places, down, out)
    return torch.from_numpy(level).to(y.device)


def _fire_at_once(block: Any, places: Tensor, down: int, out: Any) -> None:
    """Every input against every threshold; those of levels from 0 down fire where it is below."""
    reached, count = np.empty(block.shape, bool), np.empty(block.shape, np.uint8)
    out -= down
    for some in places.split(255):  # as many as a byte counts
        count.fill(0)
        for place in some.numpy():
            np.greater_equal(block, place, out=reached)
            np.add(count, reached.view(np.uint8), out=count)
        out += count


def _fire_in_turn(block: Any, places: Any, down: int, out: Any) -> None:
    """Equal thresholds one after the other, each looking at what those before it left."""
    above = np.append(places[down:], np.inf)
    below = np.append(places[:down][::-1], -np.inf)
    up, taken = np.zeros(block.shape, int), np.zeros(block.shape, int)
    for _ in range(len(above) - 1):
        up += block >= above[up]
    for _ in range(len(below) - 1):
        taken += block < below[taken]
    out += up - taken


def _blocks(array: Any) -> list[Any]:
    """An array in pieces of one axis that share its memory."""
    flat = array.reshape(-1)
    return [flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK)]


def leak_of(spec: NeuronSpec) -> float | None:
    """The share of the potential that leaks in a step, h = v - leak v + I; None without.

    What leaked away since the start is ``lost`` += leak * v, and the neuron is that of
    `totals_step` with y - lost for its input: without a leak, the same to the last bit.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> leak_of(NeuronSpec(Uniform(1), charge=LIF(4.0, decay_input=False)))
        0.25
    """
    charge = spec.charge
    return 1 / charge.tau if isinstance(charge, LIF) and not charge.decay_input else None


def without_leak(spec: NeuronSpec) -> NeuronSpec:
    """The same neuron without the leak of `leak_of`; any other is unchanged."""
    return spec if leak_of(spec) is None else replace(spec, charge=IF())


def _step_learned_literal(y: Tensor, total: Tensor, spec: NeuronSpec) -> Tensor:
    """One threshold after the other, those above the total upwards and those below it downwards."""
    lo, hi = spec.limits
    change = torch.zeros_like(total)
    for k, threshold in enumerate(_thresholds(spec.ladder, y), start=1):
        change = change + ((y >= threshold) & (k > total) & (k <= hi)).to(y.dtype)
        if spec.signed:
            change = change - ((y < threshold) & (k <= total) & (k > lo)).to(y.dtype)
    return total + change


def _thresholds(ladder: Ladder, y: Tensor) -> Tensor:
    """The thresholds of the levels 1, 2 … in the precision of y, where it is."""
    places = ladder.table if isinstance(ladder, Digit) else ladder.thresholds
    return torch.tensor(places, dtype=y.dtype, device=y.device)


def _level(y: Tensor, ladder: Digit) -> Tensor:
    """The level of an input, not yet clamped: rounded, or of learned thresholds how many it has."""
    if not ladder.gaps:
        return y.round()
    return _count_reached(y, ladder)


def _count_reached(y: Tensor, ladder: Ladder) -> Tensor:
    """How many thresholds lie at or below each number; torch warns where these lie scattered."""
    return torch.bucketize(y.contiguous(), _thresholds(ladder, y), right=True).to(y.dtype)


def _learned_position(thresholds: Tensor, k: Tensor) -> Tensor:
    """The smallest input of level k, by a table of thresholds; infinite beyond its ends."""
    ends = thresholds.new_tensor([math.inf])
    return torch.cat([-ends, thresholds, ends])[k.clamp(0, len(thresholds) + 1).long()]


def _emission(spec: NeuronSpec, fires: Callable[[Tensor], Tensor], total: Tensor) -> Tensor:
    """What one direction emits when ``fires`` tells which distances from the total are reached."""
    emitted = torch.zeros_like(total)
    if spec.rule is Firing.CASCADE:
        for threshold in spec.ladder.cascade:
            emitted = emitted + threshold * fires(emitted + threshold)
        return emitted
    for threshold, weight in zip(spec.ladder.thresholds, spec.ladder.weights, strict=True):
        emitted = emitted + weight * fires(torch.full_like(total, threshold))
    return emitted


def position(k: Tensor) -> Tensor:
    """The smallest float that rounds, half to even, to k or above.

    Example:
        >>> [float(place) for place in position(torch.tensor([1.0, 2.0]))]
        [0.5000000596046448, 1.5]
    """
    edge = k - 0.5
    return torch.where(k.remainder(2) == 1, edge.nextafter(torch.full_like(k, math.inf)), edge)


def _check_running(spec: NeuronSpec) -> None:
    """Raise unless the neuron is one whose total a quantizer describes."""
    ladder = spec.ladder
    if isinstance(ladder, Learned):
        described = (
            spec.initial == 0 and spec.rule is Firing.PARALLEL and set(ladder.weights) == {1}
        )
    else:
        learned = isinstance(ladder, Digit) and bool(ladder.gaps)
        described = spec.initial == (0.0 if learned else 0.5) and not isinstance(ladder, Radix)
    if isinstance(spec.charge, IF) and spec.reset is Reset.SOFT and described:
        return
    raise SpecError(
        f"totals_step: {spec}; allowed is IF charge and soft reset, with initial=0.5 and a "
        "Uniform, Binary or PowerOfTwo ladder, or with initial=0, parallel firing and a Learned "
        "ladder of weights 1; a Radix ladder by its steps, ladder.at(t); use mt_step for others"
    )


def count_events(emitted: Tensor, ladder: Ladder) -> Tensor:
    """Spikes in each emission: thresholds crossed; set bits (binary and power-of-two ladders); of a
    digit its size.

    A power-of-two neuron emits one at a time; the largest of several can change by more.

    Shapes: any. Units: ``emitted`` in levels.

    Example:
        >>> emitted = torch.tensor([0.0, 4.0, -3.0])
        >>> count_events(emitted, Binary(3)).tolist(), count_events(emitted, PowerOfTwo(3)).tolist()
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    """
    size = emitted.abs()
    if isinstance(ladder, Digit):
        return size / ladder.unit
    if not isinstance(ladder, (Binary, PowerOfTwo)):
        return size
    return set_bits(size, int(ladder.reach).bit_length())


def count_packets(emitted: Tensor) -> Tensor:
    """How many neurons emitted anything: ``torch.count_nonzero`` in float64.

    Example:
        >>> count_packets(torch.tensor([[0.0, 4.0, -3.0]])).item()
        2.0
    """
    return emitted.sign().abs_().sum(-1).sum(dtype=torch.float64)  # one row stays below 2^24


def set_bits(size: Tensor, width: int) -> Tensor:
    """Set bits among the lowest ``width`` ones of whole numbers from 0 up; NaN of what is none.

    Up to 8 bits are counted in pairs, fours and eights of a byte, not bit by bit.

    Example:
        >>> set_bits(torch.tensor([0.0, 7.0, 8.0]), 3).tolist()
        [0.0, 3.0, 0.0]
    """
    if width > 8 or size.requires_grad or torch.compiler.is_compiling():
        return set_bits_literal(size, width)
    byte = size.to(torch.int32).bitwise_and_(2**width - 1).to(torch.uint8)
    byte.sub_((byte >> 1).bitwise_and_(0x55))
    upper = (byte >> 2).bitwise_and_(0x33)
    byte.bitwise_and_(0x33).add_(upper)
    byte.add_(byte >> 4).bitwise_and_(0x0F)
    return byte.to(size.dtype).add_(size * 0)  # what is no number stays none


def set_bits_literal(size: Tensor, width: int) -> Tensor:
    """``set_bits`` bit by bit: the reference."""
    bits = [torch.remainder(torch.floor(size / 2**bit), 2) for bit in range(width)]
    return torch.stack(bits).sum(0)
