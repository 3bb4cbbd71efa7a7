"""A program as work for the kernels: which instructions they do, and all that they need for it.

Instructions in a row that the kernels can do become one `Segment`; the rest stays in torch. All
values of segments lie in one arena per image. A convolution or linear layer that feeds one layer of
neurons only is fused with it: its sums never leave the registers.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import SpecError
from ...ladder import Learned, PowerOfTwo
from ...neurons import IF, Reset
from ...terms import FLOAT32_WHOLE
from ..program import Accumulate, Encode, Fire, Instruction, Operate, Program, ReadOut, Slot, Sum
from . import build

aten = torch.ops.aten
LOAD, STORE, DOT, DEPTHWISE, WIDE, NONE, MAX_POOL, SUM_POOL, COPY, FLATTEN = range(10)
KEEP, FIRE, READ_OUT = range(3)
BYTES, INTS = range(2)
IMAGES, LOGITS = 0, 1  # the first two places outside the arena
FARTHEST = 2**21  # totals and steps beyond are left to torch: kernels round below 2^22
FARTHEST_TARGET = 32000  # targets of running totals are kept in int16
L1_BYTES = 16384  # of input rows to work on at a time

_SAME = {Tensor.float, Tensor.double, Tensor.contiguous, Tensor.expand, aten.clone.default}
_SAME |= {aten.alias.default, aten.detach.default, aten.contiguous.default}
_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
_RESHAPES |= {aten.flatten.using_ints, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
_RESHAPES |= {aten.unsqueeze.default, aten.unflatten.int}


@dataclass(frozen=True)
class Grid:
    """The pixels and channels of a value, and how far apart torch holds rows, columns, channels."""

    height: int
    width: int
    channels: int
    axes: tuple[int, int, int]

    @property
    def pixels(self) -> int:
        return self.height * self.width


def grid_of(shape: Sequence[int]) -> Grid | None:
    """Channels, height, width; or rows of a linear layer with channels; or channels alone.

    Example:
        >>> grid_of((8, 4, 5))
        Grid(height=4, width=5, channels=8, axes=(5, 1, 20))
    """
    if len(shape) == 3:
        channels, height, width = shape
        return Grid(height, width, channels, (width, 1, height * width))
    if len(shape) == 2:
        return Grid(1, shape[0], shape[1], (0, shape[1], 1))
    return Grid(1, 1, shape[0], (0, 0, 1)) if len(shape) == 1 else None


@dataclass(frozen=True)
class Window:
    """How a convolution or pool moves over its input."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def rows(self) -> tuple[int, int, int]:
        """Output row y reads input rows y * step + first to y * step + last."""
        first = -self.padding[0]
        return self.stride[0], first, first + (self.kernel[0] - 1) * self.dilation[0]


@dataclass(frozen=True)
class Plan:
    """What the kernels do for one instruction; None for ``kind``: nothing, it is the same value."""

    kind: int | None
    sources: tuple[int, ...]
    low: float = 0
    high: float = 0
    window: Window = Window()
    shifts: tuple[tuple[int, int, int], ...] = ()


@dataclass
class Segment:
    """Ops of each program, and the values to fetch from torch before and to hand to it after."""

    items: list[int]
    ops: list[Any] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


@dataclass
class Lowered:
    """Programs as segments and instructions (their indices) that run in torch."""

    programs: Sequence[Program]
    work: list[Segment | int]
    roots: dict[int, int]  # values that are another one in another shape
    double: set[int]  # values that torch has to hold in float64
    values: Any
    arena_bytes: int
    marks: tuple[int, int]  # where, and how many
    externals: dict[tuple[str, int], int]  # places outside the arena of ("value" or "total", value)
    totals: dict[str, int]  # layers of neurons, by name, that the kernels do
    total_ops: Any
    outside: tuple[str, ...]
    alive: list[Any]


def lower(programs: Sequence[Program], instruction_set: str) -> Lowered:
    """Segments for the kernels of an instruction set; program t is that of step t.

    Raises: SpecError: programs that are not steps of one network.
    """
    if not programs or len({_outline(program) for program in programs}) > 1:
        raise SpecError("NativeBackend: programs must be the time steps of one network")
    plans = _Plans(programs)
    return _Writer(programs, plans, instruction_set).lowered()


def _outline(program: Program) -> tuple[Any, ...]:
    shapes = tuple(whole.shape for whole in program.values.values())
    return (*(type(item) for item in program.instructions), shapes)


# ------------------------------------------------------------------------- what the kernels can do


class _Plans:
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
        self.made: dict[int, int] = {}  # values by the planned instruction that makes them
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
                self.made[out] = place
                self.bounds[out] = (min(plan.low, 0), max(plan.high, 0))

    def _too_large_for_torch(self) -> Iterable[int]:
        """Instructions whose values float32 could not carry to torch."""
        for place, item in enumerate(self.items):
            for value in () if place in self.plans else inputs(item):
                root = self.roots[value]
                if root in self.made and max(map(abs, self.bounds[root])) >= FLOAT32_WHOLE:
                    yield self.made[root]

    def grid(self, value: int) -> Grid | None:
        return grid_of(self.shapes[value])

    def kind(self, value: int) -> int | None:
        """How the arena holds a value; None: not at all."""
        low, high = self.bounds[value]
        most = 2**31 if value in self.made else FLOAT32_WHOLE
        if self.grid(value) is None or not max(-low, high) < most:
            return None
        return BYTES if max(high, 0) - min(low, 0) <= 255 else INTS

    def _plan(self, place: int, item: Instruction) -> Plan | None:
        if isinstance(item, Encode):
            usable = item.scale.numel() == 1 and max(map(abs, item.bounds)) < FARTHEST
            found = [step.instructions[place].bounds for step in self.programs]  # type: ignore
            low, high = min(low for low, _ in found), max(high for _, high in found)
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
            *moves, groups = item.geometry
            whole = all(isinstance(part, (tuple, list)) for part in moves)
            if item.weight.dim() != 4 or len(shape) != 3 or not whole:
                return None
            stride, padding, dilation = (_pair(part) for part in moves)
            window = Window(_pair(item.weight.shape[2:]), stride, padding, dilation)
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
        if not all(_known_neuron(step) for step in steps):
            return None
        low = min(step.spec.limits[0] for step in steps)
        high = max(step.spec.limits[1] for step in steps)
        reach = max(step.spec.ladder.reach for step in steps)
        most = FARTHEST_TARGET if len(steps) == 1 else FARTHEST
        return Plan(NONE, sources, low, high) if max(-low, high) + reach <= most else None

    def _plan_operator(self, item: Operate, sources: tuple[int, ...]) -> Plan | None:
        """Moves and pools."""
        if len(item.out) != 1 or not sources:
            return None
        given, shape = [self.shapes[value] for value in inputs(item)], self.shapes[item.out[0]]
        reshaped = item.target in _RESHAPES and math.prod(given[0]) == math.prod(shape)
        if (item.target in _SAME or reshaped) and given[0] == shape:
            return Plan(None, sources)
        if any(self.kind(source) is None for source in sources) or grid_of(shape) is None:
            return None
        if any(self.shapes[root] != own for root, own in zip(sources, given, strict=True)):
            return None  # a value in another shape: rare
        grids = [grid for own in given if (grid := grid_of(own))]
        low = min(self.bounds[source][0] for source in sources)
        high = max(self.bounds[source][1] for source in sources)
        if reshaped:
            one_pixel = grids[0].pixels == 1 and all(size == 1 for size in shape[1:])
            if one_pixel and shape[0] == grids[0].channels:
                return Plan(None, sources)
            return Plan(FLATTEN, sources, low, high) if len(shape) == 1 else None
        if item.target is aten.max_pool2d.default and self.kind(sources[0]) == BYTES:
            window = _pool(item, ("stride", "padding", "dilation", "ceil_mode"))
            return Plan(MAX_POOL, sources, low, high, window) if len(shape) == 3 else None
        summed = self._summed(item, given[0], shape, grids[0])
        if summed is not None:
            count = math.prod(summed.kernel)
            fits = count * max(-low, high) < 2**31
            return Plan(SUM_POOL, sources, count * low, count * high, summed) if fits else None
        shifts = _shifts(item, given, grids)
        return Plan(COPY, sources, low, high, shifts=shifts) if shifts else None

    def _summed(
        self, item: Operate, given: Sequence[int], shape: Sequence[int], grid: Grid
    ) -> Window | None:
        """The window of a pool that sums, or of a sum over all pixels."""
        if item.target is aten.avg_pool2d.default and len(shape) == 3:
            names = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            named = dict(zip(names, item.args[2:], strict=False)) | dict(item.kwargs)
            return _pool(item, names) if named.get("divisor_override") == 1 else None
        if item.target is not Tensor.sum or len(given) < 2 or len(item.args) < 2:
            return None
        axes = item.args[1] if isinstance(item.args[1], (list, tuple)) else [item.args[1]]
        found = {axis % (len(given) + 1) for axis in axes}
        over_pixels = found == ({2, 3} if len(given) == 3 else {1})
        return Window((grid.height, grid.width)) if over_pixels else None


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
        return tuple(_slots([item.args, dict(item.kwargs)]))
    values = tuple(term.value for term in item.input.terms)
    return (
        *values,
        *_slots([term.multiplier for term in item.input.terms]),
        *_slots(item.input.bias),
    )


def _slots(part: Any) -> Iterable[int]:
    if isinstance(part, Slot):
        yield part.index
    elif isinstance(part, dict):
        yield from _slots(list(part.values()))
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _slots(value)


def _known_neuron(item: Fire) -> bool:
    """Whether `running_step` describes it, with whole thresholds."""
    spec = item.spec
    plain = isinstance(spec.charge, IF) and spec.reset is Reset.SOFT and spec.initial == 0.5
    return plain and not isinstance(spec.ladder, Learned)


def _pair(sizes: Any) -> tuple[int, int]:
    """One number, or two, as two."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return (int(sizes[0]), int(sizes[-1]))


def _pool(item: Operate, names: Sequence[str]) -> Window:
    """The window of a pool as torch gives it: no stride is that of the kernel."""
    named = dict(zip(names, item.args[2:], strict=False)) | dict(item.kwargs)
    kernel = _pair(item.args[1])
    stride = _pair(named.get("stride") or kernel)
    return Window(kernel, stride, _pair(named.get("padding", 0)), _pair(named.get("dilation", 1)))


def _shifts(
    item: Operate, given: Sequence[Sequence[int]], grids: Sequence[Grid]
) -> tuple[tuple[int, int, int], ...]:
    """Where the inputs of a concatenation, or of padding with zeros, go; empty for the rest."""
    axes = {1: (2,), 2: (1, 2), 3: (2, 0, 1)}[len(given[0])]  # of a grid, by torch's axis - 1
    if item.target in (torch.cat, aten.cat.default):
        dim = item.args[1] if len(item.args) > 1 else item.kwargs.get("dim", 0)
        dim %= len(given[0]) + 1
        if dim == 0 or len(grids) != len(item.args[0]):
            return ()
        found, position = [], 0
        for grid in grids:
            shift = [0, 0, 0]
            shift[axes[dim - 1]] = position
            found.append((shift[0], shift[1], shift[2]))
            position += (grid.height, grid.width, grid.channels)[axes[dim - 1]]
        return tuple(found)
    if item.target not in (F.pad, aten.constant_pad_nd.default, aten.pad.default):
        return ()
    named = dict(zip(("mode", "value"), item.args[2:], strict=False))
    if item.target is aten.constant_pad_nd.default:
        named = dict(zip(("value",), item.args[2:], strict=False))
    named |= item.kwargs
    amounts = [int(amount) for amount in item.args[1]]
    constant = named.get("mode", "constant") == "constant" and not named.get("value")
    if not constant or min(amounts, default=0) < 0 or len(amounts) > 2 * len(given[0]):
        return ()
    shift = [0, 0, 0]
    for index, amount in enumerate(amounts[::2]):
        shift[axes[len(given[0]) - 1 - index]] = amount
    return ((shift[0], shift[1], shift[2]),)


# --------------------------------------------------------------------------- what they need for it


class _Writer:
    """Lays out the arena, packs weights and constants, and writes the ops."""

    def __init__(self, programs: Sequence[Program], plans: _Plans, instruction_set: str) -> None:
        self.programs, self.plans = programs, plans
        self.short_sums = instruction_set == "avx2"
        self.alive: list[Any] = []
        self.packed: dict[int, list[tuple[Tensor, dict[str, Any]]]] = {}
        self.externals: dict[tuple[str, int], int] = {}
        self.work = self._segments()
        self.fused = self._fused()
        self._lay_out()

    def _segments(self) -> list[Segment | int]:
        """Runs of planned instructions; the others by index."""
        work: list[Segment | int] = []
        for place in range(len(self.plans.items)):
            if place not in self.plans.plans:
                work.append(place)
            elif work and isinstance(work[-1], Segment):
                work[-1].items.append(place)
            else:
                work.append(Segment([place]))
        return work

    def _fused(self) -> dict[int, int]:
        """Layers whose sums one other instruction of the segment reads, by that instruction."""
        idle = {place for place, plan in self.plans.plans.items() if plan.kind is None}
        uses = Counter(
            self.plans.roots[value]
            for place, item in enumerate(self.plans.items)
            for value in inputs(item)
            if place not in idle
        )
        fused = {}
        for segment in self.work:
            if isinstance(segment, int):
                continue
            for place in segment.items:
                item = self.plans.items[place]
                if not isinstance(item, (Fire, ReadOut)):
                    continue
                layers = [
                    made
                    for value in self.plans.plans[place].sources
                    if (made := self.plans.made.get(value)) in segment.items and uses[value] == 1
                    if isinstance(self.plans.items[made], Accumulate)
                ]
                if layers:
                    fused[place] = max(layers)
        return fused

    def _lay_out(self) -> None:
        """A place in the arena for every value that a segment makes or reads."""
        plans = self.plans
        inner = {outputs(plans.items[made])[0] for made in self.fused.values()}
        borders: dict[int, int] = {}
        for place, plan in plans.plans.items():
            if plan.kind is None:
                continue
            made = outputs(plans.items[place])
            read = () if plan.kind == LOAD else plan.sources
            for value in (*made, *read):
                if value not in inner:
                    borders.setdefault(value, 0)
            if plan.kind in (DOT, DEPTHWISE):
                widest = max(plan.window.padding)
                borders[plan.sources[0]] = max(borders[plan.sources[0]], widest)
        self.number = {value: index for index, value in enumerate(borders)}
        self.values = (build.Value * max(len(borders), 1))()
        end = 0
        for value, border in borders.items():
            end = self._place(self.values[self.number[value]], value, border, end)
        self.targets: dict[int, int] = {}
        fires = [place for place in plans.plans if isinstance(plans.items[place], Fire)]
        for place in fires:
            grid = self._grid(outputs(plans.items[place])[0])
            self.targets[place] = end
            end += _aligned(2 * grid.pixels * grid.channels + 64)
        self.first_mark = end
        for value in borders:
            self.values[self.number[value]].changed = end
            end += 3 * self._grid(value).height
        self.unsettled = {}
        for place in fires:
            self.unsettled[place] = end
            end += 3 * self._grid(outputs(plans.items[place])[0]).height
        self.end = end + 3

    def _place(self, struct: Any, value: int, border: int, start: int) -> int:
        """Where a value lies, and where it ends."""
        grid, kind = self._grid(value), self.plans.kind(value)
        low = int(min(self.plans.bounds[value][0], 0))
        size = 1 if kind == BYTES else 4
        pixel = _aligned(grid.channels, 4 if kind == BYTES else 16)
        border = border if kind == BYTES else 0
        row = (grid.width + 2 * border) * pixel
        total = _aligned((grid.height + 2 * border) * row * size + 64)
        offset = start + (border * row + border * pixel) * size
        for name, number in {
            **{"offset": offset, "start": start, "bytes": total, "kind": kind},
            **{"height": grid.height, "width": grid.width, "channels": grid.channels},
            **{"row": row, "pixel": pixel, "low": low if kind == BYTES else 0},
        }.items():
            setattr(struct, name, number)
        return start + total

    def _grid(self, value: int) -> Grid:
        grid = self.plans.grid(value)
        assert grid is not None
        return grid

    def lowered(self) -> Lowered:
        """Everything written."""
        plans = self.plans
        at_home: set[int] = set()
        for place, segment in enumerate(self.work):
            if isinstance(segment, int):
                continue
            made = {value for item in segment.items for value in outputs(plans.items[item])}
            read = {
                source
                for item in segment.items
                if plans.plans[item].kind not in (None, LOAD)
                for source in plans.plans[item].sources
            }
            segment.before = sorted(read - made - at_home)
            at_home |= {value for value in (*made, *read) if value in self.number}
            later = [item for item in self.work[place + 1 :] if isinstance(item, int)]
            wanted = {plans.roots[v] for item in later for v in inputs(plans.items[item])}
            segment.after = sorted(wanted & made & set(self.number))
            for index in range(len(self.programs)):
                segment.ops.append(self._array(self._ops(segment, index)))
        fires = [item for item in plans.items if isinstance(item, Fire) and item.out in self.number]
        totals = {item.name: item.out for item in fires if item.out in plans.made}
        stores = [self._border(STORE, value, "total") for value in totals.values()]
        return Lowered(
            programs=self.programs,
            work=self.work,
            roots=plans.roots,
            double=plans.double,
            values=self.values,
            arena_bytes=_aligned(self.end + 64),
            marks=(self.first_mark, self.end - self.first_mark),
            externals=self.externals,
            totals=totals,
            total_ops=self._array(stores),
            outside=tuple(_title(plans.items[i]) for i in self.work if isinstance(i, int)),
            alive=self.alive,
        )

    def _array(self, ops: list[Any]) -> Any:
        return (build.Op * len(ops))(*ops)

    def _ops(self, segment: Segment, index: int) -> list[Any]:
        """The ops of a segment in one program."""
        ops = [self._border(LOAD, value, "value") for value in segment.before]
        inside = set(self.fused.values())
        for place in segment.items:
            item, plan = self.programs[index].instructions[place], self.plans.plans[place]
            if plan.kind is None or place in inside:
                continue
            if isinstance(item, Encode):
                ops.append(self._encode(item))
            elif isinstance(item, Accumulate):
                ops.append(self._layer(place, item))
            elif isinstance(item, Operate):
                ops += self._operator(item, plan)
            else:
                ops.append(self._sum(place, item, index))
        return ops + [self._border(STORE, value, "value") for value in segment.after]

    def _op(self, kind: int, grid: Grid, **fields: Any) -> Any:
        op = build.Op(kind=kind, in_=-1, out=-1, rows=grid.height, columns=grid.width)
        op.axes = grid.axes
        op.tile = grid.height
        for name, number in fields.items():
            setattr(op, name, number)
        return op

    def _border(self, kind: int, value: int, role: str) -> Any:
        """A value from torch, or to it."""
        external = self.externals.setdefault((role, value), len(self.externals) + 2)
        side = {"out" if kind == LOAD else "in_": self.number[value]}
        return self._op(kind, self._grid(value), external=external, **side)

    def _encode(self, item: Encode) -> Any:
        settings = {"scale": float(item.scale.float()), "external": IMAGES}
        low, high = map(float, item.bounds)
        out = self.number[item.out]
        return self._op(LOAD, self._grid(item.out), out=out, low=low, high=high, **settings)

    def _operator(self, item: Operate, plan: Plan) -> list[Any]:
        """Moves and pools."""
        out, ops = item.out[0], []
        assert plan.kind is not None
        for index, source in enumerate(plan.sources):
            # copies run over the rows of what they copy
            grid = self._grid(source if plan.kind == COPY else out)
            op = self._op(plan.kind, grid, in_=self.number[source], out=self.number[out])
            rows = plan.window.rows
            if plan.kind == COPY:
                op.shift = plan.shifts[index]
            elif plan.kind == FLATTEN:
                op.axes = self._grid(source).axes
                rows = (0, 0, self._grid(source).height - 1)
            self._set_window(op, plan.window)
            self._depends(op, [(self.number[source], *rows)])
            ops.append(op)
        return ops

    def _set_window(self, op: Any, window: Window) -> None:
        op.kernel, op.stride = window.kernel, window.stride
        op.padding, op.dilation = window.padding, window.dilation

    def _depends(self, op: Any, rows: Iterable[tuple[int, int, int, int]]) -> None:
        structs = [build.Dependence(*entry) for entry in rows]
        op.dependences, op.n_dependences = self._structs(build.Dependence, structs), len(structs)

    def _structs(self, kind: Any, entries: Sequence[Any]) -> int:
        """The address of structures that stay."""
        array = (kind * max(len(entries), 1))(*entries)
        self.alive.append(array)
        return ctypes.addressof(array)

    def _tensor(self, tensor: Tensor) -> int:
        """The address of numbers that stay."""
        kept = tensor.contiguous()
        self.alive.append(kept)
        return kept.data_ptr()

    def _layer(self, place: int, item: Accumulate) -> Any:
        """A convolution or linear layer that keeps its sums."""
        plan, grid = self.plans.plans[place], self._grid(item.out)
        op = self._op(plan.kind or 0, grid, finish=KEEP, out=self.number[item.out])
        self._set_layer(op, place, item)
        self._depends(op, [(op.in_, *plan.window.rows)])
        return op

    def _set_layer(self, op: Any, place: int, item: Accumulate) -> None:
        """Weights and the way over the input."""
        plan = self.plans.plans[place]
        op.kind, op.in_ = plan.kind, self.number[plan.sources[0]]
        self._set_window(op, plan.window)
        value = self.values[op.in_]
        bytes_read = value.row * plan.window.stride[0]
        op.tile = max(1, L1_BYTES // max(bytes_read, 1), math.ceil(24 / op.columns))
        for name, content in self._packed(place, item).items():
            setattr(op, name, content)

    def _packed(self, place: int, item: Accumulate) -> dict[str, Any]:
        """Weights as the kernels read them, shared between steps of equal weights."""
        for weight, packed in self.packed.setdefault(place, []):
            if weight is item.weight or torch.equal(weight, item.weight):
                return packed
        plan = self.plans.plans[place]
        value, source = self.values[self.number[plan.sources[0]]], plan.sources[0]
        weight = item.weight if item.weight.dim() == 4 else item.weight[:, :, None, None]
        groups = item.geometry[3] if item.geometry else 1
        packed = {}
        sums = weight.flatten(1).long().sum(1) * value.low
        packed["correction"] = self._tensor(F.pad(sums, (0, 32)).to(torch.int32))
        each = len(weight) if plan.kind == DEPTHWISE else len(weight) // groups
        blocks = [
            build.Block(start + c, min(16, each - c), start // each * weight.shape[1] + c * own)
            for start in range(0, len(weight), each)
            for own in [plan.kind == DEPTHWISE]
            for c in range(0, each, 16)
        ]
        packed["blocks"], packed["n_blocks"] = self._structs(build.Block, blocks), len(blocks)
        offsets = [
            i * plan.window.dilation[0] * value.row + j * plan.window.dilation[1] * value.pixel
            for i in range(weight.shape[2])
            for j in range(weight.shape[3])
        ]
        if plan.kind == DOT:
            low, high = self.plans.bounds[source]
            most = int(max(high, 0) - min(low, 0))
            quads = _quads(weight, each)
            side_by_side = groups == 1 and plan.window.dilation[1] == 1
            joined = weight.shape[3] if side_by_side else 1
            length = math.ceil(weight.shape[1] / 4) * joined
            taps = [(offset, length) for offset in offsets[::joined]]
            packed |= self._dot_weights(quads, taps, most)
        else:
            rows = weight.flatten(1).t()  # by tap, or by input channel
            rows = F.pad(rows, (0, -len(weight) % 16))
            by_block = rows.reshape(len(rows), -1, 16).transpose(0, 1)
            packed["weights"] = self._tensor(by_block)
            pieces = [build.Piece(offset, 1, 0) for offset in offsets]
            packed["pieces"], packed["n_pieces"] = self._structs(build.Piece, pieces), len(pieces)
        self.packed[place].append((item.weight, packed))
        return packed

    def _dot_weights(self, quads: Tensor, taps: list[tuple[int, int]], most: int) -> dict[str, Any]:
        """Weights [blocks, quads, 16, 4] in order of use, and the pieces of input they meet."""
        ends: list[int] | None = None
        if self.short_sums:
            ends = _int16_chunks(quads, most)
            if ends is None and 2 * most * int(quads.to(torch.int16).abs().max()) > 32767:
                near = quads.clamp(-64, 64)  # two planes of which no pair of products saturates
                quads = torch.cat([near, (quads.to(torch.int16) - near).to(torch.int8)], 1)
                taps = [*taps, *taps]
        cuts, position, pieces = set(ends or ()), 0, []
        for offset, length in taps:
            begin = 0
            for quad in range(1, length + 1):
                flush = position + quad in cuts
                if flush or quad == length:
                    pieces.append(build.Piece(offset + 4 * begin, quad - begin, int(flush)))
                    begin = quad
            position += length
        return {
            "weights": self._tensor(quads),
            "whole_sums": int(ends is None),
            "pieces": self._structs(build.Piece, pieces),
            "n_pieces": len(pieces),
        }

    def _sum(self, place: int, item: Any, index: int) -> Any:
        """A layer of neurons or the logits, with the layer fused into it."""
        plan = self.plans.plans[place]
        grid = grid_of(self.plans.shapes[plan.sources[0]])
        assert grid is not None
        op = self._op(NONE, grid, finish=FIRE if isinstance(item, Fire) else READ_OUT)
        inner, rows = None, []
        if place in self.fused:
            layer = self.programs[index].instructions[self.fused[place]]
            assert isinstance(layer, Accumulate)
            self._set_layer(op, self.fused[place], layer)
            inner = layer.out
            rows.append((op.in_, *self.plans.plans[self.fused[place]].window.rows))
        else:
            blocks = [
                build.Block(c, min(16, grid.channels - c), 0) for c in range(0, grid.channels, 16)
            ]
            op.blocks, op.n_blocks = self._structs(build.Block, blocks), len(blocks)
        others = [source for source in plan.sources if source != inner]
        self._depends(op, [*rows, *((self.number[source], 1, 0, 0) for source in others)])
        self._set_sum(op, item.input, plan.sources, inner, grid)
        if isinstance(item, Fire):
            self._set_neurons(op, place, item, grid)
        else:
            op.external = LOGITS
        return op

    def _set_sum(
        self, op: Any, wanted: Sum, sources: Sequence[int], inner: int | None, grid: Grid
    ) -> None:
        """The written sum."""
        terms = [
            build.Term(-1 if value == inner else self.number[value], self._constant(factor, grid))
            for value, factor in zip(
                sources, (term.multiplier for term in wanted.terms), strict=True
            )
        ]
        op.terms, op.n_terms = self._structs(build.Term, terms), len(terms)
        if wanted.bias is not None:
            op.bias = self._constant(wanted.bias, grid)

    def _set_neurons(self, op: Any, place: int, item: Fire, grid: Grid) -> None:
        """Bounds and steps of a layer of neurons."""
        spec, reach = item.spec, item.spec.ladder.reach
        op.out = self.number[item.out]
        op.low, op.high = map(float, spec.limits)
        op.down, op.up = (-float(reach) if spec.signed else 0.0), float(reach)
        op.bits = 0xFF800000 if isinstance(spec.ladder, PowerOfTwo) else 0xFFFFFFFF
        op.target, op.unsettled = self.targets[place], self.unsettled[place]
        if item.offset is not None:
            missing = len(self.plans.shapes[item.out]) + 1 - item.offset.dim()
            shaped = item.offset.reshape(*[1] * missing, *item.offset.shape)
            op.offset = self._constant(shaped, grid)

    def _constant(self, factor: Any, grid: Grid) -> Any:
        """A constant by channel, or by pixel and channel, with room behind for whole registers."""
        shaped = factor.detach().float()[0]
        channel = 0 if shaped.dim() == 3 else shaped.dim() - 1
        by_pixel = shaped.movedim(channel, -1)
        if by_pixel[..., 0].numel() == 1:
            row = by_pixel.reshape(-1).expand(grid.channels)
            return build.Constant(self._tensor(F.pad(row, (0, 32))), 0)
        sizes = (grid.height, grid.width) if shaped.dim() == 3 else (grid.width,)
        rows = by_pixel.expand(*sizes, grid.channels).reshape(grid.pixels, grid.channels)
        return build.Constant(self._tensor(F.pad(rows, (0, 32))), grid.channels + 32)


def _quads(weight: Tensor, each: int) -> Tensor:
    """Weights [out, in, h, w], ``each`` of them per group, as [blocks of 16, quads, 16, 4]."""
    channels_last = F.pad(weight.permute(0, 2, 3, 1), (0, -weight.shape[1] % 4))
    flat = channels_last.reshape(len(weight) // each, each, -1, 4)
    padded = F.pad(flat, (0, 0, 0, 0, 0, -each % 16))
    return padded.reshape(-1, 16, *padded.shape[2:]).transpose(1, 2).contiguous()


def _int16_chunks(quads: Tensor, most: int) -> list[int] | None:
    """Ends of the longest runs of quads whose sums fit int16 for any input up to ``most``.

    None where runs are too short to be worth it, or where a single pair of products does not fit.
    """
    numbers = quads.numpy().astype(np.int64).transpose(1, 0, 2, 3).reshape(quads.shape[1], -1, 2)
    if not numbers.size or 2 * most * int(np.abs(numbers).max()) > 32767:
        return None
    above = most * np.maximum(numbers, 0).sum(2)
    below = most * np.maximum(-numbers, 0).sum(2)
    ends, up, down = [], np.zeros_like(above[0]), np.zeros_like(above[0])
    for quad in range(len(numbers)):
        up, down = up + above[quad], down + below[quad]
        if max(up.max(), down.max()) > 32767:
            ends.append(quad)
            up, down = above[quad], below[quad]
    ends.append(len(numbers))
    return ends if len(numbers) >= 4 * len(ends) or len(ends) == 1 else None


def _aligned(size: int, to: int = 64) -> int:
    return -(-size // to) * to


def _title(item: Instruction) -> str:
    """What to call an instruction that runs in torch."""
    if isinstance(item, Operate):
        return str(getattr(item.target, "__name__", item.target))
    return getattr(item, "name", type(item).__name__)
