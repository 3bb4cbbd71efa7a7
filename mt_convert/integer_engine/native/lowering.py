"""A program as work for the kernels: segments of ops, and all that they need.

Instructions in a row that the kernels can do become one `Segment`; the rest stays in torch. All
values of segments lie in one arena per image. A convolution or linear layer that feeds one layer of
neurons only is fused with it: its sums never leave the registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import SpecError
from ...neurons.ladder import PowerOfTwo
from ..program import Accumulate, Encode, Fire, Instruction, Operate, Program, Sum
from . import step_tables
from .arena import Arena
from .build import real_set
from .layout import (
    BYTES,
    BYTES_AND_OWN,
    COPY,
    DEPTHWISE,
    FIRE,
    FLATTEN,
    IMAGES,
    KEEP,
    LOAD,
    LOGITS,
    NONE,
    OTHERWISE,
    OWN,
    OWN_AND_BYTES,
    READ_OUT,
    STORE,
    Block,
    Dependence,
    Op,
    Term,
    Thresholds,
)
from .operators import Grid, Move, Window, grid_of
from .packing import Kept, Packing
from .plans import FARTHEST_TARGET, Plan, Plans, inputs, outputs
from .segments import OpNote, Segment, layers_to_fuse, segments

L1_BYTES = 16384  # of input rows to work on at a time


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
    plans = Plans(programs)
    return _Writer(programs, plans, instruction_set).lower()


def _outline(program: Program) -> tuple[Any, ...]:
    shapes = tuple(whole.shape for whole in program.values.values())
    return (*(type(item) for item in program.instructions), shapes)


class _Writer:
    """Writes the ops of all segments."""

    def __init__(self, programs: Sequence[Program], plans: Plans, instruction_set: str) -> None:
        self.programs, self.plans, self._grid = programs, plans, plans.require_grid
        self.work = segments(plans)
        self.fused_layers = layers_to_fuse(plans, self.work)
        self.arena = Arena(
            plans, {outputs(plans.items[layer])[0] for layer in self.fused_layers.values()}
        )
        self.values, self.number = self.arena.values, self.arena.number
        self.kept = Kept()
        real = real_set(instruction_set)
        quads = real in ("avx512_vnni", "amx")
        self.packing = Packing(
            self.kept, short_sums=real == "avx2", quads=quads, tiles=real == "amx"
        )
        self.externals: dict[tuple[str, int], int] = {}

    def lower(self) -> Lowered:
        """Everything written."""
        plans = self.plans
        at_home: set[int] = set()
        for place, segment in enumerate(self.work):
            if isinstance(segment, int):
                continue
            results = {value for item in segment.items for value in outputs(plans.items[item])}
            read = {
                source
                for item in segment.items
                if plans.plans[item].kind not in (None, LOAD)
                for source in plans.plans[item].sources
            }
            segment.before = sorted(read - results - at_home)
            at_home |= {value for value in (*results, *read) if value in self.number}
            later = [item for item in self.work[place + 1 :] if isinstance(item, int)]
            needs = {plans.roots[v] for item in later for v in inputs(plans.items[item])}
            segment.after = sorted(needs & results & set(self.number))
            for index in range(len(self.programs)):
                self.notes: list[OpNote] = []
                segment.ops.append(self._array(self._ops(segment, index)))
                segment.notes = self.notes
        fires = [item for item in plans.items if isinstance(item, Fire) and item.out in self.number]
        totals = {item.name: item.out for item in fires if item.out in plans.producers}
        stores = [self._border(STORE, value, "total") for value in totals.values()]
        return Lowered(
            programs=self.programs,
            work=self.work,
            roots=plans.roots,
            double=plans.double,
            values=self.values,
            arena_bytes=self.arena.size,
            marks=self.arena.marks,
            externals=self.externals,
            totals=totals,
            total_ops=self._array(stores),
            outside=tuple(title(plans.items[i]) for i in self.work if isinstance(i, int)),
            alive=self.kept.alive,
        )

    def _array(self, ops: list[Any]) -> Any:
        return (Op * len(ops))(*ops)

    def _ops(self, segment: Segment, index: int) -> list[Any]:
        """The ops of a segment in one program, and a note of each."""
        ops = [self._border(LOAD, value, "value") for value in segment.before]
        self.notes += [OpNote(f"value {value}", "from torch") for value in segment.before]
        inside = set(self.fused_layers.values())
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
            self.notes += [self._note(place, op) for op in ops[len(self.notes) :]]
        self.notes += [OpNote(f"value {value}", "to torch") for value in segment.after]
        return ops + [self._border(STORE, value, "value") for value in segment.after]

    def _note(self, place: int, op: Any) -> OpNote:
        """What an op does, of the instruction ``place``."""
        item = self.plans.items[place]
        layer = self.plans.items[self.fused_layers.get(place, place)]
        moved = sum(self.values[number].bytes for number in (op.in_, op.out) if number >= 0)
        if not isinstance(layer, Accumulate):
            kind = "image" if isinstance(item, Encode) else type(item).__name__.lower()
            return OpNote(title(item), kind, moved=moved)
        kind = f"linear {len(layer.weight)}"
        if layer.weight.dim() == 4:
            size, (stride, _) = "x".join(map(str, layer.weight.shape[2:])), layer.geometry[0]
            own = "depthwise" if op.kind == DEPTHWISE else "conv"
            kind = f"{own} {size}" + (f" /{stride}" if stride > 1 else "")
        weights = layer.weight.numel()
        return OpNote(layer.name, kind, weights * op.rows * op.columns, weights, moved)

    def _op(self, kind: int, grid: Grid, **fields: Any) -> Any:
        op = Op(kind=kind, in_=-1, out=-1, rows=grid.height, columns=grid.width)
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
        assert plan.kind is not None
        count = len(plan.moves)
        if plan.kind == COPY:
            sources = plan.sources * (count // len(plan.sources))
            outs = item.out * (count // len(item.out))
            return [self._move(*one) for one in zip(sources, outs, plan.moves, strict=True)]
        source, out = plan.sources[0], item.out[0]
        op = self._op(plan.kind, self._grid(out), in_=self.number[source], out=self.number[out])
        rows = plan.window.rows
        if plan.kind == FLATTEN:
            grid = self._grid(source)
            op.axes, rows = grid.axes, (0, 0, grid.height - 1)
        self._set_window(op, plan.window)
        self._depends(op, [(op.in_, *rows)])
        return [op]

    def _between(self, kind: int, source: int, out: int) -> Any:
        return self._op(kind, self._grid(out), in_=self.number[source], out=self.number[out])

    def _move(self, source: int, out: int, move: Move) -> Any:
        op = self._op(COPY, self._grid(out), in_=self.number[source], out=self.number[out])
        op.rows, op.columns, op.channels = move.size
        op.start, op.shift, op.step = move.start, move.to, move.step
        self._depends(op, [(op.in_, *move.rows)])
        return op

    def _set_window(self, op: Any, window: Window) -> None:
        op.kernel, op.stride = window.kernel, window.stride
        op.padding, op.dilation = window.padding, window.dilation

    def _depends(self, op: Any, rows: Iterable[tuple[int, int, int, int]]) -> None:
        structs = [Dependence(*entry) for entry in rows]
        op.dependences, op.n_dependences = self.kept.structs(Dependence, structs), len(structs)

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
        low, high = self.plans.bounds[plan.sources[0]]
        most = int(max(high, 0) - min(low, 0))
        pixels = op.rows * op.columns
        for name, content in self.packing.layer(place, item, plan, value, most, pixels).items():
            setattr(op, name, content)

    def _sum(self, place: int, item: Any, index: int) -> Any:
        """A layer of neurons or the logits, with the layer fused into it."""
        plan = self.plans.plans[place]
        grid = grid_of(self.plans.shapes[plan.sources[0]])
        assert grid is not None
        op = self._op(NONE, grid, finish=FIRE if isinstance(item, Fire) else READ_OUT)
        inner, rows = None, []
        if place in self.fused_layers:
            layer = self.programs[index].instructions[self.fused_layers[place]]
            assert isinstance(layer, Accumulate)
            self._set_layer(op, self.fused_layers[place], layer)
            inner = layer.out
            rows.append((op.in_, *self.plans.plans[self.fused_layers[place]].window.rows))
        else:
            blocks = [Block(c, min(16, grid.channels - c), 0) for c in range(0, grid.channels, 16)]
            op.blocks, op.n_blocks = self.kept.structs(Block, blocks), len(blocks)
        others = [source for source in plan.sources if source != inner]
        self._depends(op, [*rows, *((self.number[source], 1, 0, 0) for source in others)])
        self._set_sum(op, item.input, plan.sources, inner, grid)
        if isinstance(item, Fire):
            self._set_neurons(op, place, item, grid)
        else:
            op.external = LOGITS
        return op

    def _set_sum(
        self, op: Any, formula: Sum, sources: Sequence[int], inner: int | None, grid: Grid
    ) -> None:
        """The written sum."""
        terms = [
            Term(-1 if value == inner else self.number[value], self.kept.constant(factor, grid))
            for value, factor in zip(
                sources, (term.multiplier for term in formula.terms), strict=True
            )
        ]
        op.terms, op.n_terms = self.kept.structs(Term, terms), len(terms)
        if formula.bias is not None:
            op.bias = self.kept.constant(formula.bias, grid)

    def _set_neurons(self, op: Any, place: int, item: Fire, grid: Grid) -> None:
        """Bounds and steps of a layer of neurons."""
        spec, reach = item.spec, item.spec.ladder.reach
        op.out = self.number[item.out]
        op.low, op.high = map(float, spec.limits)
        op.down, op.up = (-float(reach) if spec.signed else 0.0), float(reach)
        op.bits = 0xFF800000 if isinstance(spec.ladder, PowerOfTwo) else 0xFFFFFFFF
        op.target, op.unsettled = self.arena.targets[place], self.arena.unsettled[place]
        if item.offset is not None:
            missing = len(self.plans.shapes[item.out]) + 1 - item.offset.dim()
            shaped = item.offset.reshape(*[1] * missing, *item.offset.shape)
            op.offset = self.kept.constant(shaped, grid)
        if item.table is not None:
            op.thresholds = self.kept.structs(
                Thresholds, [step_tables.pack(item.table, self.kept.tensor)]
            )
        elif item.offset is None:
            op.summed = self._int16_sum(op)

    def _int16_sum(self, op: Any) -> int:
        """The sum, where neurons in int16 know it."""
        terms = (Term * op.n_terms).from_address(op.terms)
        others = [term.value for term in terms if term.value >= 0]
        held = {self.values[place].kind for place in (op.out, *others)}
        by_pixel = any((op.bias.pixel, *(term.multiplier.pixel for term in terms)))
        far = max(-op.low, op.high, op.up) > FARTHEST_TARGET
        if held != {BYTES} or by_pixel or far or op.bits != 0xFFFFFFFF:
            return OTHERWISE
        kinds = {(True,): OWN, (True, False): OWN_AND_BYTES, (False, True): BYTES_AND_OWN}
        return kinds.get(tuple(term.value < 0 for term in terms), OTHERWISE)


def title(item: Instruction) -> str:
    """What to call an instruction that runs in torch."""
    if isinstance(item, Operate):
        return str(getattr(item.target, "__name__", item.target))
    return getattr(item, "name", type(item).__name__)
