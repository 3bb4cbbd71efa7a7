"""A converted network run by shifts, additions and comparisons of integers: slow, and a proof.

Between the levels of the image and the class scores nothing is multiplied, divided or real. Each
layer receives what changed in a step, as events with a sign:

    a neuron         one event per spike of a uniform ladder, one per set bit of what a binary or
                     power-of-two ladder emits (of the last there is one)
    a maximum        the change of its output, as the ladder of the neuron it shows would emit it
    a weighted layer adds for each event and connection its weight, shifted left by the event's bit,
                     subtracts it where levels fall, to int32 sums kept from step to step; a zero
                     weight is a connection, the border beyond the image is none
    a movement, sum  passes each event on: nothing merges. The sums themselves, which only neurons
                     and the read-out look at, are counted apart
    a window         of layers that wait hands over all its steps: the digits of a radix ladder as
                     events worth their unit, counted in their step; what is no neuron's in the last
    a neuron         compares one accumulator with an integer threshold for each threshold of its
                     ladder and direction, looked up by its running total (`threshold_tables`)

The first weighted layers read levels of the image, numbers instead of spikes: one event per set bit
of |level|, in the first step alone, also where the image is presented in every step. They are
counted apart too. Real numbers are at both ends only: pixels become levels (`encode`), and the
integer accumulators of the last layer times one factor per class are the scores (`scores`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..graph.float32 import in_float32
from ..graph.nodes import check_images
from ..neurons.ladder import Digit, Uniform
from ..spiking.presentation import check_time_steps
from . import threshold_tables, torch_backend
from .model import IntegerModel
from .program import Accumulate, Encode, Fire, Operate, Program, Sum, slots
from .spike_events import (
    LEAST,
    Line,
    Value,
    digit_events,
    emit,
    events_of,
    gather_windows,
    in_32_bits,
)


@dataclass(frozen=True)
class ShiftAddRun:
    """What a run without multiplications computed, and what it did in each step, for all images.

    ``additions``: of shifted weights, by weighted layer, caused by spikes; ``encoder``: those that
    the set bits of the image's levels cause. ``comparisons``: by layer of neurons. ``pools``:
    additions into the sums of pools; ``maxima``: comparisons within maxima.

    Shapes: logits [T, batch, classes], float32; totals[layer] [batch, ...], levels emitted by the
    end, int32; all counts one int per step.
    """

    logits: Tensor
    totals: dict[str, Tensor]
    additions: dict[str, list[int]]
    encoder: dict[str, list[int]]
    comparisons: dict[str, list[int]]
    pools: list[int]
    maxima: list[int]


@torch.no_grad()
@in_float32()
def shift_add(model: IntegerModel, images: Tensor, time_steps: int = 1) -> ShiftAddRun:
    """Run an integer network without a multiplication: all T steps, from fresh potentials.

    Shapes:
        images [batch, channels, height, width], normalised as in training.
    Raises:
        SpecError: fewer than one step; parts of the network that need real numbers, all of them.
        DataError: images of another shape, or with NaN.

    Example:
        >>> from torch import nn
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> from .model import integer
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> model = integer(snn, backend="torch")
        >>> run = shift_add(model, images)
        >>> torch.equal(run.logits, model.run(images).logits)
        True
        >>> run.additions["3"] == [2 * int(run.totals["1"].sum())]
        True
    """
    check_time_steps(time_steps)
    programs = [model.program(t, time_steps) for t in range(time_steps)]
    threshold_tables.check(programs[0])
    images = check_images(images, programs[0].values[0].shape)
    run = _Run(images, time_steps)
    if model.waits:  # each program is a whole window, read behind another step
        early = [_Run(images, time_steps).step(time_steps - 1, one) for one in programs[:-1]]
        logits = torch.stack([*early, run.step(time_steps - 1, programs[-1])])
    else:
        assert len({tuple(map(type, program.instructions)) for program in programs}) == 1
        logits = torch.stack([run.step(t, program) for t, program in enumerate(programs)])
    return ShiftAddRun(
        logits,
        run.totals,
        additions=dict(run.additions),
        encoder=dict(run.encoder),
        comparisons=dict(run.comparisons),
        pools=run.pools,
        maxima=run.maxima,
    )


# ------------------------------------------------------------------------------------ both ends


def encode(item: Encode, images: Tensor) -> Tensor:
    """Levels of the image: real numbers come in."""
    return torch.round(images / item.scale).clamp(*item.bounds).int()


def scores(formula: Sum, values: Mapping[int, Value]) -> Tensor:
    """Class scores: integer accumulators times real factors, after the last layer."""
    return torch_backend.real_sum(
        formula, {index: value.numbers for index, value in values.items()}
    )


# ------------------------------------------------------------------------------------- the steps


class _Run:
    """One batch of images: the numbers of all values, step after step, and counts."""

    def __init__(self, images: Tensor, time_steps: int) -> None:
        self.images, self.t = images, 0
        self.values: dict[int, Value] = {}
        self.before: dict[int, Value] = {}
        self.totals: dict[str, Tensor] = {}
        self.wires: dict[int, Any] = {}
        self.thresholds: dict[int, tuple[Fire, threshold_tables.ThresholdTable]] = {}

        def nothing() -> list[int]:
            return [0 for _ in range(time_steps)]

        self.additions: dict[str, list[int]] = defaultdict(nothing)
        self.encoder: dict[str, list[int]] = defaultdict(nothing)
        self.comparisons: dict[str, list[int]] = defaultdict(nothing)
        self.pools, self.maxima = nothing(), nothing()

    def step(self, t: int, program: Program) -> Tensor:
        """The class scores behind step t."""
        self.t, self.before, self.values = t, self.values, {}
        for item in program.instructions:
            if isinstance(item, Encode):
                numbers = encode(item, self.images)
                self._as_change(item.out, numbers, torch.zeros_like(numbers).bool(), image=True)
            elif isinstance(item, Accumulate):
                self._accumulate(item, program.values[item.out].shape)
            elif isinstance(item, Fire):
                self._fire(item, program)
            elif isinstance(item, Operate):
                self._operate(item, program)
            else:
                return scores(item.input, self.values)
        raise AssertionError("a program ends with its read-out")

    def _last(self, index: int, like: Tensor) -> Tensor:
        """The numbers of a value behind the last step."""
        return self.before[index].numbers if index in self.before else torch.zeros_like(like)

    def _as_change(self, index: int, numbers: Tensor, unary: Tensor, image: bool = False) -> None:
        """A value that tells its own change."""
        change = numbers - self._last(index, numbers)
        self.values[index] = Value(numbers, events_of(change, unary, image, self.t), unary)

    def _wiring(self, index: int, make: Callable[..., Any], *words: Any) -> Any:
        """The wiring of a value, worked out once."""
        if index not in self.wires:
            self.wires[index] = make(*words)
        return self.wires[index]

    def _accumulate(self, item: Accumulate, shape: Sequence[int]) -> None:
        """Shifted weights added to sums, event by event."""
        source, linear = self.values[item.value], not item.geometry
        events = source.events
        if events is None:
            change = source.numbers - self._last(item.value, source.numbers)
            events = events_of(change, source.unary, step=self.t)
        size, out = source.numbers.shape[2:], shape[1:]
        if linear:
            size, out = source.numbers.shape[1:-1], shape[:-1]
        weight = threshold_tables.weights_by_group(item)
        places = self._wiring(item.out, threshold_tables.taps, item, size, out).to(weight.device)
        batch, (groups, per_group) = len(source.numbers), weight.shape[:2]
        total = self._last(item.out, weight.new_zeros(batch, *shape))
        here = self.additions[item.name], self.encoder[item.name]
        for line, counts in events.items():
            planes = counts.movedim(-1, 1) if linear else counts
            planes = planes.reshape(batch, planes.shape[1], -1)
            arriving = gather_windows(planes, places, 0).unflatten(1, (groups, -1)).flatten(2, 3)
            arriving = arriving.unsqueeze(2).expand(-1, -1, per_group, -1, -1)
            shifted = torch.bitwise_left_shift(weight, line.shift)
            for others in range(int(arriving.max())):
                there = arriving > others
                added = torch.where(there, shifted, 0).sum(3, dtype=torch.int32).flatten(1, 2)
                added = added.reshape(batch, -1, *out)
                added = added.movedim(1, -1) if linear else added
                total = total - added if line.down else total + added
                here[line.image][line.step] += int(there.sum())
        self.values[item.out] = Value(total, None, torch.zeros_like(total).bool())

    def _fire(self, item: Fire, program: Program) -> None:
        """Neurons compare an accumulator with thresholds that their totals pick."""
        if item.window:
            self._fire_window(item, program)
            return
        entry = self.thresholds.get(item.out)
        if entry is None or entry[0] is not item:  # presented in every step: a table for each
            entry = self.thresholds[item.out] = item, threshold_tables.ThresholdTable(item, program)
        free, reaches = self._comparison(item, entry[1], self.t)
        total = emit(item.spec, reaches, self._last(item.out, free))
        unary = torch.full_like(total, isinstance(item.spec.ladder, Uniform), dtype=torch.bool)
        self.totals[item.name] = total
        self._as_change(item.out, total, unary)

    def _fire_window(self, item: Fire, program: Program) -> None:
        """All steps of a window, one after the other, from a total of 0."""
        shared = threshold_tables.ThresholdTable(item, program) if item.together else None
        total, events = None, dict[Line, Tensor]()
        for t, (formula, spec) in enumerate(item.window):
            table = shared
            if table is None:
                own = item.tables[t] if item.tables else item.table
                step = replace(item, input=formula, spec=spec, table=own)
                table = threshold_tables.ThresholdTable(step, program)
            free, reaches = self._comparison(item, table, t)
            before = torch.zeros_like(free) if total is None else total
            total = emit(spec, reaches, before)
            change, ladder = total - before, spec.ladder
            unary = torch.full_like(total, isinstance(ladder, Uniform), dtype=torch.bool)
            if isinstance(ladder, Digit):
                events |= digit_events(change, ladder, t)
            else:
                events |= events_of(change, unary, step=t)
        assert total is not None
        self.totals[item.name] = total
        self.values[item.out] = Value(total, events, unary)

    def _comparison(
        self, item: Fire, table: threshold_tables.ThresholdTable, t: int
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The number that neurons compare, and whether it has come to a position of their total."""
        numbers = [self.values[term.value].numbers for term in item.input.terms]
        free = numbers.pop(table.free)
        rows = torch.stack([table.places.expand(free.shape), *numbers], -1).flatten(0, -2)
        distinct, row = torch.unique(rows, dim=0, return_inverse=True)
        thresholds, falling = table.thresholds(distinct)
        if table.is_function:
            return free, self._function_level(item, table, t, free, distinct, row)
        thresholds, falling = (
            one[row].reshape(*free.shape, *one.shape[1:]) for one in (thresholds, falling)
        )

        def reaches(position: Tensor) -> Tensor:
            column = (position - (table.low + 1)).clamp(0, thresholds.shape[-1] - 1).long()
            threshold = thresholds.gather(-1, column.unsqueeze(-1)).squeeze(-1)
            self.comparisons[item.name][t] += free.numel()
            return torch.where(falling, free <= threshold, free >= threshold)

        return free, reaches

    def _function_level(
        self,
        item: Fire,
        table: threshold_tables.ThresholdTable,
        t: int,
        free: Tensor,
        distinct: Tensor,
        row: Tensor,
    ) -> Callable[[Tensor], Tensor]:
        """Whether the level of a function has come to a position: every threshold is compared, and
        each adds or takes away one level."""
        thresholds, falling = table.thresholds(distinct)
        weights, start = table.weights(distinct)
        level = start[row].reshape(free.shape)
        down = falling[row].reshape(free.shape)
        for column, adds in zip(thresholds.unbind(1), weights.unbind(1), strict=True):
            threshold = column[row].reshape(free.shape)
            there = torch.where(down, free <= threshold, free >= threshold)
            level = level + torch.where(there, adds[row].reshape(free.shape), 0)
            self.comparisons[item.name][t] += free.numel()
        return lambda position: level >= position

    def _operate(self, item: Operate, program: Program) -> None:
        """An operator that is not a layer."""
        if item.target in threshold_tables.MOVES:
            self._move(item)
            return
        source = self.values[item.args[0].index]
        (index,) = item.out
        if item.target in threshold_tables.CASTS:
            self.values[index] = source
        elif item.target in threshold_tables.MAXIMA:
            self._maximum(item, source, program.values[index].shape)
        elif item.target in threshold_tables.SUMS:
            self._sum(item, source, program.values[index].shape)
        else:
            self._scale(item, source)

    def _move(self, item: Operate) -> None:
        """The same numbers and events elsewhere."""
        sources = {index: self.values[index] for index in slots((item.args, item.kwargs))}
        numbers = {index: value.numbers for index, value in sources.items()}
        pieces = self._wiring(
            item.out[0], threshold_tables.move_sources, item, numbers, len(self.images)
        )
        lines = {line for value in sources.values() for line in value.events or ()}
        by_events = all(value.events is not None for value in sources.values())
        for index, places in zip(item.out, pieces, strict=True):

            def move(planes: list[Tensor], places: Tensor = places) -> Tensor:
                flat = torch.cat([planes[0].new_zeros(1), *(plane.flatten() for plane in planes)])
                return flat.index_select(0, places.flatten()).reshape(places.shape)

            events = {}
            for line in sorted(lines) if by_events else ():
                counts = [(value.events or {}).get(line) for value in sources.values()]
                pairs = zip(counts, numbers.values(), strict=True)
                events[line] = move(
                    [torch.zeros_like(like) if one is None else one for one, like in pairs]
                )
            unary = move([value.unary for value in sources.values()])
            self.values[index] = Value(
                move(list(numbers.values())), events if by_events else None, unary
            )

    def _maximum(self, item: Operate, source: Value, shape: Sequence[int]) -> None:
        """The largest of each window, and what changed of it."""
        if item.target == torch.ops.aten.amax.default:
            rest, named = item.args[1:], item.kwargs
            numbers = source.numbers.amax(*rest, **named)
            unary = source.unary.int().amax(*rest, **named) > 0
            met_there = source.numbers.numel()
        else:
            size = source.numbers.shape[2:]
            places = self._wiring(item.out[0], threshold_tables.pool_windows, item, size, shape[1:])
            places = places.to(source.numbers.device)
            numbers = gather_windows(source.numbers, places, LEAST).amax(2).unflatten(2, shape[1:])
            unary = gather_windows(source.unary, places, 0).any(2).unflatten(2, shape[1:])
            met_there = int(gather_windows(torch.ones_like(source.unary), places, 0).sum())
        self.maxima[self.t] += met_there - numbers.numel()
        self._as_change(item.out[0], numbers, unary)

    def _sum(self, item: Operate, source: Value, shape: Sequence[int]) -> None:
        """Every event is passed on by itself, and is added to the sum as well."""
        if item.target == Tensor.sum:

            def add_up(numbers: Tensor) -> Tensor:
                return numbers.sum(*item.args[1:], **item.kwargs, dtype=torch.int64)
        else:
            size = source.numbers.shape[2:]
            places = self._wiring(item.out[0], threshold_tables.pool_windows, item, size, shape[1:])
            places = places.to(source.numbers.device)

            def add_up(numbers: Tensor) -> Tensor:
                return gather_windows(numbers, places, 0).sum(2).unflatten(2, shape[1:])

        (index,) = item.out
        if source.events is None:
            numbers, events = add_up(source.numbers), None
            self.pools[self.t] += int(add_up(torch.ones_like(source.numbers)).sum())
        else:
            events = {line: add_up(counts) for line, counts in source.events.items()}
            numbers = self._last(index, add_up(torch.zeros_like(source.numbers)))
            for line, counts in events.items():
                worth = torch.bitwise_left_shift(counts, line.shift)
                numbers = numbers - worth if line.down else numbers + worth
                self.pools[self.t] += int(counts.sum())
        numbers = in_32_bits(numbers)
        self.values[index] = Value(numbers, events, torch.zeros_like(numbers).bool())

    def _scale(self, item: Operate, source: Value) -> None:
        """A constant whole factor: one shifted event for each of its set bits."""
        numbers = torch.zeros_like(source.numbers, dtype=torch.int64)
        events: dict[Line, Tensor] = {}
        for bit, where in threshold_tables.factor(item):
            numbers = numbers + torch.where(
                where, torch.bitwise_left_shift(source.numbers.long(), bit), 0
            )
            for line, counts in (source.events or {}).items():
                further = line._replace(shift=line.shift + bit)
                counts = torch.where(where, counts, 0)
                events[further] = events[further] + counts if further in events else counts
        new_events = None if source.events is None else events
        self.values[item.out[0]] = Value(in_32_bits(numbers), new_events, source.unary)
