"""What the kernels can do: a plan for each instruction, and what is known of every value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...neurons.ladder import Digit, Learned
from ...neurons.spec import IF, Reset
from ..program import Accumulate, Encode, Fire, Instruction, Operate, Program, ReadOut, slots
from ..terms import FLOAT32_WHOLE
from . import step_tables
from .layout import BYTES, COPY, DEPTHWISE, DOT, FLATTEN, INTS, LOAD, MAX_POOL, NONE, SUM_POOL, WIDE
from .operators import Grid, Move, Window, grid_of, is_whole, moves, pair, pool, sum_window

aten = torch.ops.aten

FARTHEST = 2**21  # totals and steps beyond are left to torch: kernels round below 2^22
FARTHEST_TARGET = 32000  # targets of running totals are kept in int16
_SAME = {Tensor.float, Tensor.double, Tensor.contiguous, Tensor.expand, aten.clone.default}
_SAME |= {aten.alias.default, aten.detach.default, aten.contiguous.default}
_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
_RESHAPES |= {aten.flatten.using_ints, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
_RESHAPES |= {aten.unsqueeze.default, aten.unflatten.int}


@dataclass(frozen=True)
class Plan:
    """What the kernels do for one instruction; None for ``kind``: nothing, it is the same value."""

    kind: int | None
    sources: tuple[int, ...]
    low: float = 0
    high: float = 0
    window: Window = field(default_factory=Window)
    moves: tuple[Move, ...] = ()


class Plans:
    """A plan for each instruction that the kernels can do, and what is known of its value."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs
        self.items = programs[0].instructions
        self.shapes = {index: whole.shape for index, whole in programs[0].values.items()}
        self.banned: set[int] = set()
        while True:
            self._plan_all()
            lost = set(self._too_large_for_torch()) - self.banned
            if not lost:
                break
            self.banned |= lost

    def _plan_all(self) -> None:
        self.plans: dict[int, Plan] = {}
        self.roots = {index: index for index in self.shapes}
        self.bounds = {
            index: (
                min(program.values[index].low for program in self.programs),
                max(program.values[index].high for program in self.programs),
            )
            for index in self.shapes
        }
        self.producers: dict[int, int] = {}  # value to planned instruction
        self.double: set[int] = set()
        for place, item in enumerate(self.items):
            plan = None if place in self.banned else self._plan(place, item)
            if isinstance(item, Operate) and item.target is Tensor.double:
                self.double.update(item.out)
            if plan is None:
                continue
            self.plans[place] = plan
            for out in outputs(item):
                if plan.kind is None:
                    self.roots[out] = self.roots[plan.sources[0]]
                    continue
                self.producers[out] = place
                self.bounds[out] = (min(plan.low, 0), max(plan.high, 0))

    def _too_large_for_torch(self) -> Iterable[int]:
        """Instructions whose values float32 could not carry to torch."""
        for place, item in enumerate(self.items):
            for value in () if place in self.plans else inputs(item):
                root = self.roots[value]
                if root in self.producers and max(map(abs, self.bounds[root])) >= FLOAT32_WHOLE:
                    yield self.producers[root]

    def grid(self, value: int) -> Grid | None:
        return grid_of(self.shapes[value])

    def require_grid(self, value: int) -> Grid:
        """The grid of a value that the kernels hold."""
        grid = self.grid(value)
        assert grid is not None
        return grid

    def kind(self, value: int) -> int | None:
        """How the arena holds a value; None: not at all."""
        low, high = self.bounds[value]
        most = 2**31 if value in self.producers else FLOAT32_WHOLE
        if self.grid(value) is None or not max(-low, high) < most:
            return None
        return BYTES if max(high, 0) - min(low, 0) <= 255 else INTS

    def _plan(self, place: int, item: Instruction) -> Plan | None:
        if isinstance(item, Encode):
            usable = item.scale.numel() == 1 and max(map(abs, item.bounds)) < FARTHEST
            bounds = [step.instructions[place].bounds for step in self.programs]  # type: ignore
            low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
            return Plan(LOAD, (0,), low, high) if usable and self.grid(item.out) else None
        sources = tuple(self.roots[value] for value in inputs(item))
        if isinstance(item, Operate):
            return self._plan_operator(item, sources)
        if any(self.kind(source) is None for source in sources):
            return None
        if isinstance(item, Accumulate):
            return self._plan_layer(item, sources)
        return self._plan_sum(place, item, sources)

    def _plan_layer(self, item: Accumulate, sources: tuple[int, ...]) -> Plan | None:
        """A convolution over two axes, or a linear layer over rows."""
        source, shape = self.kind(sources[0]), self.shapes[item.value]
        window, groups = Window(), 1
        limit = item.limit
        if item.geometry:
            *ways, groups = item.geometry
            whole = all(isinstance(part, (tuple, list)) for part in ways)
            if item.weight.dim() != 4 or len(shape) != 3 or not whole:
                return None
            stride, padding, dilation = (pair(part) for part in ways)
            window = Window(pair(item.weight.shape[2:]), stride, padding, dilation)
        elif len(shape) > 2:
            return None
        if self.shapes[item.value] != self.shapes[sources[0]]:
            sized = self.grid(item.value), self.grid(sources[0])
            if not sized[0] or not sized[1] or {part.pixels for part in sized if part} != {1}:
                return None
        channels = item.weight.shape[0]
        if source == INTS:
            return Plan(WIDE, sources, -limit, limit) if (window, groups) == (Window(), 1) else None
        own = groups > 1 and groups == channels and item.weight.shape[1] == 1
        return Plan(DEPTHWISE if own else DOT, sources, -limit, limit, window)

    def _plan_sum(self, place: int, item: Any, sources: tuple[int, ...]) -> Plan | None:
        """A layer of neurons, or the logits."""
        shape = self.shapes[sources[0]] if isinstance(item, ReadOut) else self.shapes[item.out]
        steps: list[Any] = [program.instructions[place] for program in self.programs]
        constants = [term.multiplier for step in steps for term in step.input.terms]
        constants += [step.input.bias for step in steps if step.input.bias is not None]
        if not all(isinstance(part, Tensor) for part in constants):
            return None  # some differ from image to image
        same = all(self.shapes[term.value] == shape for term in item.input.terms)
        same = same and all(self.shapes[source] == shape for source in sources)
        single = all(part.dim() == len(shape) + 1 and part.shape[0] == 1 for part in constants)
        if not (same and single and grid_of(shape)):
            return None
        if isinstance(item, ReadOut):
            return Plan(NONE, sources)
        if not all(_known_neuron(step, shape) for step in steps):
            return None
        low = min(step.spec.limits[0] for step in steps)
        high = max(step.spec.limits[1] for step in steps)
        reach = max(step.spec.ladder.reach for step in steps)
        most = FARTHEST_TARGET if len(steps) == 1 else FARTHEST
        return Plan(NONE, sources, low, high) if max(-low, high) + reach <= most else None

    def _plan_operator(self, item: Operate, sources: tuple[int, ...]) -> Plan | None:
        """Moves and pools."""
        if not sources:
            return None
        in_shapes, out_shapes = (
            [self.shapes[v] for v in values] for values in (inputs(item), item.out)
        )
        held = (
            sources[0] in self.producers
        )  # of torch's own the layout can matter, to a view behind it
        if len(out_shapes) == 1 and held and _is_same(item, in_shapes[0], out_shapes[0]):
            return Plan(None, sources)
        if any(self.kind(source) is None for source in sources) or grid_of(out_shapes[0]) is None:
            return None
        if any(self.shapes[root] != own for root, own in zip(sources, in_shapes, strict=True)):
            return None  # a value in another shape: rare
        low = min(self.bounds[source][0] for source in sources)
        high = max(self.bounds[source][1] for source in sources)
        if pieces := moves(item, in_shapes, out_shapes):
            return Plan(COPY, sources, low, high, moves=pieces)
        return self._plan_one(item, sources, low, high) if len(out_shapes) == 1 else None

    def _plan_one(
        self, item: Operate, sources: tuple[int, ...], low: float, high: float
    ) -> Plan | None:
        """Reshapes and pools."""
        in_shape, shape = self.shapes[sources[0]], self.shapes[item.out[0]]
        if item.target in _RESHAPES and math.prod(in_shape) == math.prod(shape):
            grid = self.grid(sources[0])
            one_pixel = grid is not None and grid.pixels == 1 and all(n == 1 for n in shape[1:])
            if grid is not None and one_pixel and shape[0] == grid.channels:
                return Plan(None, sources)
            return Plan(FLATTEN, sources, low, high) if len(shape) == 1 else None
        if item.target is aten.max_pool2d.default and self.kind(sources[0]) == BYTES:
            window = pool(item, ("stride", "padding", "dilation", "ceil_mode"))
            return Plan(MAX_POOL, sources, low, high, window) if len(shape) == 3 else None
        over = sum_window(item, in_shape, shape)
        if over is None:
            return None
        count = math.prod(over.kernel)
        fits = count * max(-low, high) < 2**31
        return Plan(SUM_POOL, sources, count * low, count * high, over) if fits else None


def outputs(item: Instruction) -> tuple[int, ...]:
    """The values that an instruction makes."""
    if isinstance(item, Operate):
        return item.out
    return () if isinstance(item, ReadOut) else (item.out,)


def inputs(item: Instruction) -> tuple[int, ...]:
    """The values that an instruction reads."""
    if isinstance(item, Encode):
        return (0,)
    if isinstance(item, Accumulate):
        return (item.value,)
    if isinstance(item, Operate):
        return tuple(slots([item.args, item.kwargs]))
    formulas = [item.input]
    if isinstance(item, Fire):
        formulas += [formula for formula, _ in item.window if formula is not item.input]
    values = tuple(term.value for term in item.input.terms)
    factors = [(formula.bias, [term.multiplier for term in formula.terms]) for formula in formulas]
    return (*values, *slots(factors))


def _known_neuron(item: Fire, shape: tuple[int, ...]) -> bool:
    """Whether `totals_step` describes it, with whole thresholds one level apart, in one step; those
    of a function lie as the kernels look them up."""
    spec = item.spec
    plain = isinstance(spec.charge, IF) and spec.reset is Reset.SOFT and spec.initial == 0.5
    plain = plain and (item.table is None or step_tables.fits(item.table, shape))
    return plain and item.together and not isinstance(spec.ladder, (Learned, Digit))


def _is_same(item: Operate, in_shape: Sequence[int], out_shape: Sequence[int]) -> bool:
    """Whether an operator leaves everything where it is."""
    return in_shape == out_shape and (
        item.target in _SAME or item.target in _RESHAPES or is_whole(item, in_shape)
    )
