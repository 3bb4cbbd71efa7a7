"""Where a quantized function changes its level: thresholds bisected over all float32 numbers.

level(x) = clamp(round(f(x) / s), lo, hi) is *defined* by f in float64 on the float32 x, divided by
s in float64, rounded half to even, or half up where that is asked for. `sample` looks at f all
over, once for each function; between two places where f turns a level changes at one float32
number, which `step_table` bisects.
float32 functions of torch are no basis: their last bits hang on how numbers lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Fault, SpecError
from .step_table import LARGEST, StepTable

ULPS = 2000
"""On either side of a threshold, where the level must be steady."""
MOST_TURNS = 64
_LARGEST_PLACE = 0x7F7FFFFF
_SAMPLES, _SAMPLES_OF_MANY = 2**17, 2**14  # of the lattice; where channels differ
_SPANS = (1.0, 16.0, 256.0, 4096.0)  # evenly sampled too: features away from 0
_SPAN_SAMPLES = 2**14
_FLAT = 1e-7  # of a level from sample to sample: the rounding of float64
_USUAL, _COARSE = 16.0, 1000.0  # inputs, and levels of their range, at which turns are counted
_BLOCK = 2**22  # numbers at a time

Function = Callable[[Tensor], Tensor]
"""float64 [N, C or 1, 1 …] to float64 of the same shape, C where channels differ."""


class NotAFunction(Exception):
    """A function that no finite number of thresholds describes: why."""


@dataclass(frozen=True)
class Samples:
    """A function all over the float32 numbers.

    Shapes: places int64 [N], ascending; values float64 [N, C].
    """

    places: Tensor
    values: Tensor


def places_of(x: Tensor) -> Tensor:
    """The place of float32 numbers among all of them: 0 for 0, neighbours 1 apart.

    Example:
        >>> places_of(torch.tensor([0.0, 1e-45, -1e-45])).tolist()
        [0, 1, -1]
    """
    bits = x.contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def numbers_at(places: Tensor) -> Tensor:
    """The inverse of `places_of`.

    Example:
        >>> numbers_at(torch.tensor([1065353216, -1065353216])).tolist()
        [1.0, -1.0]
    """
    size = places.abs().to(torch.int32).view(torch.float32)
    return torch.where(places < 0, -size, size)


def sample(function: Function, channels: int = 1, axis: int = -1) -> Samples:
    """A function at numbers of all sizes, more of them near 0.

    Raises:
        NotAFunction: it is not a number somewhere, or turns again and again.
    """
    places = _places(channels)
    blocks = places.split(max(1, _BLOCK // channels))
    values = torch.cat([_at(function, block[:, None], channels, axis) for block in blocks])
    if bool(values.isnan().any()):
        where = numbers_at(places)[values.isnan().any(1)]
        raise NotAFunction(f"not a number at {float(where[len(where) // 2]):.4g}")
    near = values[places.abs() <= int(places_of(torch.tensor([_USUAL]))[0])]
    size = float((near.amax() - near.amin()).clamp(1e-30, 1e30)) / _COARSE
    _check_turns(len(_turns((values / size).clamp(-10 * _COARSE, 10 * _COARSE))[0]), channels)
    return Samples(places, values)


def step_table(
    function: Function,
    samples: Samples,
    step: float,
    bounds: tuple[int, int],
    axis: int = -1,
    name: str = "the function",
    *,
    half_up: bool = False,
) -> StepTable:
    """The thresholds of clamp(round(f(x) / step), *bounds), f as `Function` takes it; ties go to
    the even level, or ``half_up``.

    Raises:
        NotAFunction: it turns more than `MOST_TURNS` times.
        SpecError: the level is not steady within `ULPS` of a threshold, or f has features that the
            samples did not show.

    Example:
        >>> gelu = torch.nn.functional.gelu
        >>> table = step_table(gelu, sample(gelu), 0.25, (-1, 3))
        >>> table.weights.tolist(), [round(x, 3) for x in table.thresholds[0].tolist()]
        ([[-1, 1, 1, 1, 1]], [-1.307, -0.341, 0.214, 0.533, 0.795])
    """
    channels = samples.values.shape[1]
    knots = _knots(function, samples, step, bounds, axis)

    def level(places: Tensor) -> Tensor:
        return _level(_at(function, places, channels, axis), step, bounds, half_up)

    at_knots = level(knots.T)  # [k, C]
    rises = at_knots.diff(dim=0)
    count = int(rises.abs().sum(0).max())
    shape = (max(count, 1), channels)
    low, high = torch.full(shape, _LARGEST_PLACE), torch.full(shape, _LARGEST_PLACE)
    target, weights = torch.zeros(shape), torch.zeros(shape, dtype=torch.int8)
    for index in range(channels):
        stretch = torch.repeat_interleave(rises[:, index].abs().long())
        if not len(stretch):
            continue
        before = torch.cat([torch.zeros(1), rises[:, index].abs().cumsum(0)])[stretch]
        nth = torch.arange(len(stretch)) - before  # 0, 1 … within a stretch
        sign = rises[stretch, index].sign()
        own = slice(0, len(stretch))
        low[own, index] = knots[index, stretch]
        high[own, index] = knots[index, stretch + 1]
        target[own, index] = at_knots[stretch, index] + sign * (nth + 1)
        weights[own, index] = sign.to(torch.int8)
    while bool((low + 1 < high).any()):  # the level changes in (low, high]
        middle = torch.div(low + high, 2, rounding_mode="floor")
        reached = (level(middle) - target) * weights >= 0
        high = torch.where(reached & (low + 1 < high), middle, high)
        low = torch.where(~reached & (low + 1 < high), middle, low)
    places, order = high.sort(stable=True, dim=0)
    thresholds = torch.where(weights.gather(0, order) == 0, LARGEST, numbers_at(places))
    kept = slice(0, max(count, 1))
    table = StepTable(
        thresholds.T[:, kept].contiguous(),
        weights.gather(0, order).T.contiguous(),
        at_knots[0],
        axis,
    )
    _check(table, function, samples, step, bounds, name, half_up)
    return table


def level_in_float64(
    function: Function, x: Tensor, step: float, bounds: tuple[int, int], *, half_up: bool = False
) -> Tensor:
    """The definition: clamp(round(f(x) / step), *bounds) of float32 numbers, in float64.

    Example:
        >>> level_in_float64(torch.tanh, torch.tensor([-9.0, 0.5]), 0.25, (-3, 3)).tolist()
        [-3.0, 2.0]
    """
    return _level(function(x.double()), step, bounds, half_up)


def _level(values: Tensor, step: float, bounds: tuple[int, int], half_up: bool) -> Tensor:
    levels = values / step
    return (torch.floor(levels + 0.5) if half_up else levels.round()).clamp(*bounds)


def _places(channels: int) -> Tensor:
    """Places all over the lattice, ascending."""
    count = _SAMPLES if channels == 1 else max(2**10, min(_SAMPLES_OF_MANY, _BLOCK // channels))
    even = torch.linspace(-_LARGEST_PLACE, _LARGEST_PLACE, count, dtype=torch.float64).long()
    spans = [
        torch.linspace(-span, span, min(count, _SPAN_SAMPLES))
        for span in (_SPANS if channels == 1 else _SPANS[:2])
    ]
    ends = torch.tensor([-_LARGEST_PLACE, -1, 0, 1, _LARGEST_PLACE])
    return torch.cat([even, ends, *map(places_of, spans)]).unique()


def _at(function: Function, places: Tensor, channels: int, axis: int) -> Tensor:
    """f at places [N, C or 1], float64 [N, C]."""
    x = numbers_at(places).double().expand(-1, channels)
    shaped = x.reshape(*x.shape, *[1] * (-1 - axis))
    return function(shaped).reshape(len(places), -1).expand(-1, channels)


def _knots(
    function: Function, samples: Samples, step: float, bounds: tuple[int, int], axis: int
) -> Tensor:
    """The ends of the lattice and the places where f turns, ascending, [C, k]; the last repeated in
    channels with fewer."""
    channels = samples.values.shape[1]
    left, right, channel = _turns((samples.values / step).clamp(bounds[0] - 1, bounds[1] + 1))
    _check_turns(len(left), channels)
    ends = samples.places[left], samples.places[right]
    turns = _refine(function, *ends, channel, channels, axis)
    most = int(torch.bincount(channel, minlength=channels).max()) if len(channel) else 0
    knots = torch.full((channels, most + 2), _LARGEST_PLACE)
    knots[:, 0] = -_LARGEST_PLACE
    for index in range(channels):
        own = turns[channel == index].sort().values
        knots[index, 1 : 1 + len(own)] = own
    return knots


def _check_turns(count: int, channels: int) -> None:
    """Raise for a function that goes up and down without end."""
    if count > MOST_TURNS * channels:
        raise NotAFunction(f"turns {count // channels} times")


def _turns(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Between which samples f, in levels, turns: the last before, the first behind, and in which
    channel."""
    change = levels.diff(dim=0)
    slope = torch.where(change.abs() <= _FLAT, 0, change.sign()).to(torch.int8)
    index = torch.arange(len(slope))[:, None].expand_as(slope)
    last = torch.where(slope != 0, index, -1).cummax(0).values  # the last slope that is none
    before = torch.cat([torch.full((1, slope.shape[1]), -1), last[:-1]])
    earlier = slope.gather(0, before.clamp(min=0))
    turning = (slope != 0) & (before >= 0) & (earlier != slope)
    row, channel = turning.nonzero(as_tuple=True)
    return before[row, channel], row + 1, channel


def _refine(
    function: Function, left: Tensor, right: Tensor, channel: Tensor, channels: int, axis: int
) -> Tensor:
    """The place of each extremum between two places, by thirds."""
    if not len(left):
        return left

    def at(places: Tensor) -> Tensor:
        spread = places[:, None].expand(-1, channels)
        return _at(function, spread, channels, axis)[torch.arange(len(places)), channel]

    middle = at(torch.div(left + right, 2, rounding_mode="floor"))
    ends = torch.maximum(at(left), at(right)), torch.minimum(at(left), at(right))
    upward = torch.where((middle - ends[0]).abs() >= (middle - ends[1]).abs(), 1.0, -1.0)
    upward = torch.where(middle >= ends[0], 1.0, torch.where(middle <= ends[1], -1.0, upward))
    while bool((right - left > 2).any()):
        third = torch.div(right - left, 3, rounding_mode="floor").clamp(min=1)
        first, second = at(left + third) * upward, at(right - third) * upward
        left = torch.where((first < second) & (right - left > 2), left + third, left)
        right = torch.where((first >= second) & (right - left > 2), right - third, right)
    return torch.div(left + right, 2, rounding_mode="floor")


def _check(
    table: StepTable,
    function: Function,
    samples: Samples,
    step: float,
    bounds: tuple[int, int],
    name: str,
    half_up: bool,
) -> None:
    """Raise where the definition is not the table: near its thresholds, or at the samples."""
    channels, axis = samples.values.shape[1], table.axis
    hint = "keep it analog, functions={'NAME': 'analog'}, or choose another number of bits"

    def differs(places: Tensor, expected: Tensor) -> Tensor:
        x = numbers_at(places).expand(-1, channels)
        x = x.reshape(*x.shape, *[1] * (-1 - axis))
        return (table(x).reshape(len(places), -1) != expected).any(1)

    due = _level(samples.values, step, bounds, half_up)
    if bool((wrong := differs(samples.places[:, None], due)).any()):
        near = float(numbers_at(samples.places[wrong])[0])
        fault = Fault(name, f"has features too narrow to follow, near {near:.6g}", hint)
        raise SpecError("a function is no ladder", [fault])
    around = torch.arange(-ULPS, ULPS + 1)
    centres = places_of(table.thresholds).T  # [n, C]
    for some in centres.split(max(1, _BLOCK // (len(around) * channels))):
        places = (some[:, None] + around[None, :, None]).flatten(0, 1)
        places = places.clamp(-_LARGEST_PLACE, _LARGEST_PLACE)
        expected = _level(_at(function, places, channels, axis), step, bounds, half_up)
        if bool((wrong := differs(places, expected)).any()):
            near = float(numbers_at(places[wrong])[0, 0])
            text = f"its level is not steady within {ULPS} ulp of a threshold, near {near:.6g}"
            raise SpecError("a threshold is not clean", [Fault(name, text, hint)])
