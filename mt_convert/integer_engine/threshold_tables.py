"""What a multiplication-free run looks up, worked out before it: thresholds and wiring.

Here numbers are multiplied, as offline on the machine that prepares a chip; `shift_add`, which
reads these tables, multiplies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Fault, SpecError
from ..graph.rules import DEFAULT_RULES, OperatorKind
from ..neurons.ladder import has_learned_gaps
from ..neurons.step_table import StepTable
from ..neurons.totals import totals_step
from .program import Accumulate, Fire, Operate, Program, ReadOut, Slot, Sum, Whole, slots
from .terms import written_sum
from .torch_backend import fill_arguments

aten = torch.ops.aten
CASTS = frozenset({Tensor.float, Tensor.double, Tensor.contiguous})
MAXIMA = frozenset(
    {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.amax.default}
)
SUMS = frozenset({aten.avg_pool2d.default, aten.avg_pool3d.default, Tensor.sum})
MOVES = frozenset(
    {
        *(target for target, rule in DEFAULT_RULES.items() if rule.kind is OperatorKind.MOVE),
        *(aten.cat.default, aten.stack.default, aten.pad.default, aten.constant_pad_nd.default),
        *(torch.cat, F.pad, Tensor.expand, Tensor.__getitem__),
    }
)
WIDEST = 2**31 - 1  # a 32-bit accumulator


class ThresholdTable:
    """The integer thresholds of one layer of neurons in one step.

    Of the whole numbers that its neurons read, the one that can be widest (``free``) is compared;
    the others (levels along a residual connection, a second accumulator) choose the thresholds,
    and so does the class of a neuron: ``places`` says which neurons share multipliers, bias and
    offset. The written float32 formula never falls as the free number, times the sign of its
    multiplier, rises: so each threshold is found by bisection on the formula itself. Those of a
    function are found one by one, whether the level rises or falls there (``weights``, ``start``).

    Shapes: ``places`` int64, that of the layer for one image.

    Raises: SpecError: neurons that `totals_step` does not describe.
    """

    def __init__(self, item: Fire, program: Program) -> None:
        totals_step(torch.zeros(1), torch.zeros(1), item.spec)
        self.low, self.high = (int(bound) for bound in item.spec.limits)
        terms, shape = item.input.terms, program.values[item.out].shape
        reach = [_reach(program.values[term.value]) for term in terms]
        self.free = reach.index(max(reach))
        self._limit, self._biased = reach[self.free], item.input.bias is not None
        self._terms, optional = len(terms), (item.input.bias, item.offset)
        factors = [term.multiplier for term in terms] + [one for one in optional if one is not None]
        constants = [one for one in factors if isinstance(one, Tensor)]
        assert len(constants) == len(factors), "check() refuses factors that depend on the image"
        self._function = item.table
        if item.table is not None:
            constants.append(_channels(item.table, len(shape)))
        wide = [torch.broadcast_to(one, (1, *shape)).flatten() for one in constants]
        stacked = torch.stack([one.double() for one in wide], 1)
        distinct, place = torch.unique(stacked, dim=0, return_inverse=True)
        self.places = place.reshape(shape)
        self._columns = [distinct[:, index].to(one.dtype) for index, one in enumerate(wide)]

    @property
    def terms(self) -> int:
        """How many values its neurons read."""
        return self._terms

    @property
    def count(self) -> int:
        """How many thresholds a row has."""
        if self._function is not None:
            return int(self._function.thresholds.shape[1])
        return self.high - self.low

    def multiplier(self, term: int, rows: Tensor) -> Tensor:
        """What one unit of a term is worth in these classes of neurons."""
        return self._columns[term][rows]

    def thresholds(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Thresholds of levels low + 1 … high for each row, and whether they are reached from above
        (acc <= threshold, where the multiplier is negative) instead of from below.

        A row is a class of neurons and what the other terms are. A threshold out of reach lies one
        beyond the largest sum.

        Shapes: rows int64 [rows, 1 + other terms]; returns int64 [rows, levels] and bool [rows].
        """
        falling = self.multiplier(self.free, rows[:, :1]) < 0
        sign = torch.where(falling, -1, 1)
        targets = torch.arange(self.low + 1, self.high + 1, device=rows.device)
        if self._function is not None:  # [rows, n], in the formula's numbers
            targets = self._function.thresholds[self._columns[-1][rows[:, 0]]]
        low = torch.full((len(rows), targets.shape[-1]), -self._limit, device=rows.device)
        high = torch.full_like(low, self._limit + 1)
        while bool((low < high).any()):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            level = self.sums(rows, sign * middle)
            rounded = level.round() if self._function is None else level
            reached = rounded >= targets
            high = torch.where(reached & (low < high), middle, high)
            low = torch.where(~reached & (low < high), middle + 1, low)
        return sign * low, falling[:, 0]

    def sums(self, rows: Tensor, free: Tensor) -> Tensor:
        """The written formula in these rows, for each of some numbers of the compared value.

        Shapes: rows as in `thresholds`; ``free`` and what is returned [rows, numbers].
        """
        end = len(self._columns) - (self._function is not None)
        constants = [column[rows[:, 0], None] for column in self._columns[:end]]
        multipliers, rest = constants[: self._terms], constants[self._terms :]
        others = [column[:, None] for column in rows[:, 1:].unbind(1)]
        numbers = [*others[: self.free], free, *others[self.free :]]
        level = written_sum(numbers, multipliers, rest[0] if self._biased else None)
        for offset in rest[self._biased :]:
            level = level + offset
        return level

    @property
    def is_function(self) -> bool:
        """Whether its thresholds are those of a function, in no order of levels."""
        return self._function is not None

    def weights(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What each threshold of a function adds in these rows, +1 or -1, int64 [rows, n], and the
        level before all of them, [rows]."""
        assert self._function is not None
        channel = self._columns[-1][rows[:, 0]]
        return self._function.weights[channel].long(), self._function.start[channel].long()


def _channels(table: StepTable, axes: int) -> Tensor:
    """Which thresholds of a function each neuron has, shaped to meet one image of it."""
    numbers = torch.arange(len(table.start), device=table.start.device)
    shape = [1] * (axes + 1)
    shape[table.axis] = -1
    return numbers.reshape(shape) if len(numbers) > 1 else numbers.reshape([1] * (axes + 1))


def _reach(value: Whole) -> int:
    """The largest size of a number, as far as it is known."""
    widest = max(abs(value.low), abs(value.high))
    return WIDEST if math.isinf(widest) else int(widest)


def windows(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Which entry of a plane each tap of each window meets; the number of entries where none.

    Shapes: one number per axis of space; returns int64 [taps, windows], both in row-major order.

    Example:
        >>> windows([4], [2], [3], [2], [1], [1]).tolist()
        [[4, 1], [0, 2], [1, 3]]
    """
    index, inside = torch.zeros(1, 1).long(), torch.ones(1, 1).bool()
    for axis, (entries, places) in enumerate(zip(size, out, strict=True)):
        start = torch.arange(places) * stride[axis] - padding[axis]
        at = start + torch.arange(kernel[axis])[:, None] * dilation[axis]
        index = _outer(index * entries, at, torch.add)
        inside = _outer(inside, (at >= 0) & (at < entries), torch.logical_and)
    return torch.where(inside, index, math.prod(size))


def _outer(before: Tensor, axis: Tensor, join: Any) -> Tensor:
    """Taps and windows of the axes so far, with one axis more."""
    pairs: Tensor = join(before[:, None, :, None], axis[None, :, None, :])
    return pairs.flatten(2, 3).flatten(0, 1)


def weights_by_group(item: Accumulate) -> Tensor:
    """int32 [groups, outputs of a group, inputs of a group and taps, 1]."""
    groups = item.geometry[3] if item.geometry else 1
    return item.weight.int().flatten(1).unflatten(0, (groups, -1))[..., None]


def taps(item: Accumulate, size: Sequence[int], out: Sequence[int]) -> Tensor:
    """`windows` of a weighted layer; of a linear one an entry meets its own weight alone."""
    if not item.geometry:
        return torch.arange(math.prod(out))[None]
    kernel = item.weight.shape[2:]
    stride, padding, dilation, _ = item.geometry
    if padding == "same":
        around = zip(kernel, dilation, strict=True)
        padding = [step * (entries - 1) // 2 for entries, step in around]
    elif padding == "valid":
        padding = [0 for _ in kernel]
    return windows(size, out, kernel, stride, padding, dilation)


def pool_windows(item: Operate, size: Sequence[int], out: Sequence[int]) -> Tensor:
    """`windows` of a pool; those that pass the rim (``ceil_mode``) meet nothing there."""
    names = ("kernel_size", "stride", "padding", "dilation")
    positional = len(names) if item.target in MAXIMA else 3
    arguments = dict(zip(names[:positional], item.args[1:], strict=False)) | dict(item.kwargs)
    kernel = _each(arguments["kernel_size"], len(size))
    stride = _each(arguments.get("stride") or kernel, len(size))
    padding = _each(arguments.get("padding", 0), len(size))
    dilation = _each(arguments.get("dilation", 1), len(size))
    return windows(size, out, kernel, stride, padding, dilation)


def _each(numbers: Any, axes: int) -> list[int]:
    """One number per axis."""
    sizes = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    return sizes if len(sizes) == axes else sizes * axes


def move_sources(item: Operate, sources: Mapping[int, Tensor], batch: int) -> list[Tensor]:
    """Where each entry of what a movement gives comes from: the operator, run once on places.

    Place 0 stands for the zeros of padding, those of the sources follow in order.

    Shapes: sources[index], any with the shape of the value; returns int64, those of the results.
    """
    places, start = {}, 1
    for index, value in sources.items():
        count = value.numel()
        numbers = torch.arange(start, start + count, device=value.device, dtype=torch.float64)
        places[index], start = numbers.reshape(value.shape), start + count
    args, kwargs = (fill_arguments(part, places, batch) for part in (item.args, item.kwargs))
    pieces = item.target(*args, **kwargs)
    return [piece.long() for piece in ([pieces] if isinstance(pieces, Tensor) else pieces)]


def _factor_bits(factor: Any) -> list[tuple[int, Tensor]]:
    """Set bits of a constant factor, and where each is set; none if it is not whole, or below 0.

    Example:
        >>> [(bit, where.tolist()) for bit, where in _factor_bits(torch.tensor([1.0, 6.0]))]
        [(0, [True, False]), (1, [False, True]), (2, [False, True])]
    """
    if not isinstance(factor, Tensor) or bool(
        (factor.double() % 1 != 0).any() | (factor < 0).any()
    ):
        return []
    whole = factor.long()
    return [(bit, (whole >> bit) % 2 == 1) for bit in range(max(int(whole.max()).bit_length(), 1))]


# ------------------------------------------------------------------- what runs, and what does not


def check(program: Program, *, real: bool = False) -> None:
    """Raise unless the whole network runs on integers; with ``real``, but for operators that are no
    layer."""
    hint = "needs real numbers: replace it, or run the network with integer(snn)"
    faults = [Fault(name, "no integer form", hint) for name in program.real if not real]
    faults += _real_neurons(program)
    for item in program.instructions:
        if isinstance(item, (Fire, ReadOut)) and any(not one.value for one in item.input.terms):
            name = item.name if isinstance(item, Fire) else "class scores"
            faults.append(Fault(name, "reads the image", "not levels: give QuantSpec input_bits"))
        if isinstance(item, (Fire, ReadOut)) and _varying(item.input):
            name = item.name if isinstance(item, Fire) else "class scores"
            faults.append(Fault(name, "factors that depend on the image", hint))
        if isinstance(item, Operate) and not program.real:
            if 0 in slots((item.args, item.kwargs)):
                faults.append(Fault("the image", str(item.target), "give QuantSpec input_bits"))
            elif not real and item.target not in CASTS | MAXIMA | SUMS | MOVES and not factor(item):
                faults.append(Fault(f"value {item.out[0]}", str(item.target), hint))
    if faults:
        raise SpecError("this network does not run by shifts and additions alone", faults)


def _varying(formula: Sum) -> bool:
    """Whether a multiplier or the bias is a value of its own."""
    return any(
        isinstance(one, Slot) for one in (*(x.multiplier for x in formula.terms), formula.bias)
    )


def factor(item: Operate) -> list[tuple[int, Tensor]]:
    """Set bits of the whole numbers that a value is scaled by; none if it is not."""
    return _factor_bits(item.args[1]) if item.target == Tensor.mul else []


def _real_neurons(program: Program) -> list[Fault]:
    """Layers of neurons without integer thresholds, and what to do about them."""
    faults = []
    for item in program.instructions:
        if not isinstance(item, Fire):
            continue
        name = type(item.spec.ladder).__name__
        ladder = item.spec.ladder
        if has_learned_gaps(ladder):
            hint = "its thresholds are real numbers: convert with Uniform, Binary or PowerOfTwo"
            faults.append(Fault(item.name, name, hint))
        elif item.table is not None and item.offset is not None:
            hint = "its offset is none of the sum: convert without a calibration of potentials"
            faults.append(Fault(item.name, "a function with an offset", hint))
        elif any(spec.start for _, spec in item.window) or item.spec.start:
            hint = "counts from its lowest level, a constant and no event: convert with Radix"
            faults.append(Fault(item.name, name, hint))
        elif None in (item.spec.bounds or (None,)):
            faults.append(Fault(item.name, name, "no bounds: convert from a quantized network"))
        else:
            try:
                totals_step(torch.zeros(1), torch.zeros(1), item.spec)
            except SpecError as fact:
                faults.append(Fault(item.name, name, str(fact)))
    return faults
