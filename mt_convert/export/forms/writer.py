"""The nodes of a network, written one after the other from the integer engine's instructions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import Fault, UnsupportedLayerError
from ...integer_engine import threshold_tables as tables
from ...integer_engine.program import (
    Accumulate,
    Encode,
    Fire,
    Operate,
    Program,
    ReadOut,
    Slot,
    Sum,
    Whole,
    slots,
)
from ...integer_engine.terms import FLOAT32_WHOLE
from ...neurons.ladder import Binary
from .float_segments import Segment, read_by, take_constants
from .nodes import Node, Value, emitted_levels, formula_arrays, narrow_program
from .threshold_sums import INT32, threshold_sum
from .unrolled import asked_for, emission

aten = torch.ops.aten
HEADLINE = "this network does not leave the house exactly"


class Writer:
    """The nodes so far. Of ``several`` steps a node that stands there already is not written again;
    ``emitted``: the last value of each layer of neurons. With ``real`` numbers, ``kinds`` are the
    types in which the engine holds values, ``pending`` operators that are part of a later node."""

    def __init__(self, program: Program, several: bool = False, real: bool = False) -> None:
        self.program, self.several, self.real = program, several, real
        self.kinds: dict[int, torch.dtype] = {}
        self.pending: dict[int, tuple[Operate, ...]] = {}
        self.behind = ""  # of the names of nodes, in later steps
        self.emitted: dict[str, int] = {}
        self._seen: dict[tuple[str, tuple[int, ...]], list[Node]] = {}
        self._copies: dict[int, list[int]] = {}
        self._sums: dict[Any, Any] = {}
        self.nodes: list[Node] = []
        self.values: dict[int, Value] = {}
        self.aliases: dict[int, int] = {}
        self.sources: dict[int, Any] = {}
        self.faults: list[Fault] = []

    def write(self, item: Any) -> None:
        """One instruction of the program."""
        if isinstance(item, Encode):
            low, high = item.bounds
            scale = item.scale.detach().float().reshape(())
            settings = {"low": low, "high": high}
            self._add(
                "encode", "image", (0,), item.out, (low, high), settings, {"scale": scale}, item
            )
        elif not isinstance(item, Operate) and (late := self._images_not_first(item)):
            hint = "images are not in front of what it reads: it has no form image by image"
            fault = Fault(getattr(item, "name", "class scores"), f"reads value {late[0]}", hint)
            raise UnsupportedLayerError(HEADLINE, [*self.faults, fault])
        elif isinstance(item, Accumulate):
            self._accumulate(item)
        elif isinstance(item, Fire):
            self._fire(item)
        elif isinstance(item, ReadOut):
            self._read_out(item)
        else:
            self._operate(item)

    def _images_not_first(self, item: Accumulate | Fire | ReadOut) -> list[int]:
        """What an instruction reads that is no value of its own here."""
        if isinstance(item, Accumulate):
            read = [item.value]
        else:
            read = [term.value for term in item.input.terms]
        return [index for index in read if index in self.pending]

    def _add(
        self,
        op: str,
        name: str,
        inputs: tuple[int, ...],
        out: int,
        bounds: tuple[float, float],
        settings: Mapping[str, Any],
        arrays: Mapping[str, Tensor],
        source: Any,
    ) -> None:
        low, high = int(bounds[0]), int(bounds[1])
        name += self.behind
        node = Node(op, name, inputs, out, dict(settings), dict(arrays))
        if self.several and not name.startswith("again"):
            alike = self._seen.setdefault((op, inputs), [])
            if (first := next((one for one in alike if _same(one, node)), None)) is not None:
                self.aliases[out] = first.out
                return
            alike.append(node)
        if max(-low, high) >= INT32:
            hint = "needs more than 32 bits: use fewer bits, or a smaller pool"
            self.faults.append(Fault(name, f"numbers up to {max(-low, high):.1e}", hint))
            low, high = -1, 1
        is_real = op == "float" or (
            op in ("gather", "reshape") and any(self.values[index].real for index in inputs)
        )
        self.values[out] = Value(tuple(self.program.values[out].shape), low, high, is_real)
        self.nodes.append(node)
        self.sources[out] = source

    def at(self, index: int) -> int:
        return self.aliases.get(index, index)

    def _apart(self, inputs: Iterable[int]) -> tuple[int, ...]:
        """Inputs of a node that are values of their own, so that it can be run by itself."""
        apart: dict[int, None] = {}
        for index in map(self.at, inputs):
            place = sum(one == index or one in self._copies.get(index, ()) for one in apart)
            apart[self._copy(index, place) if place else index] = None
        return tuple(apart)

    def _new(self, value: Whole) -> int:
        """One value more."""
        out = max(self.program.values) + 1
        self.program = replace(self.program, values={**self.program.values, out: value})
        return out

    def _copy(self, index: int, place: int) -> int:
        """A value once more; ``place`` says which of its copies."""
        copies = self._copies.setdefault(index, [])
        if place > len(copies):
            copies.append(self._again(index))
        return copies[place - 1]

    def _again(self, index: int) -> int:
        """A value once more."""
        value = self.values[index]
        out = self._new(Whole(value.shape, value.low, value.high))
        source = Operate((out,), aten.alias.default, (Slot(index),), {})
        bounds = value.low, value.high
        self._add("reshape", f"again {index}", (index,), out, bounds, {}, {}, source)
        return out

    def _terms_apart(self, formula: Sum) -> Sum:
        """A written sum of values of their own."""
        inputs = self._apart(term.value for term in formula.terms)
        terms = zip(formula.terms, inputs, strict=True)
        return replace(formula, terms=tuple(replace(term, value=index) for term, index in terms))

    def _accumulate(self, item: Accumulate) -> None:
        source = self.at(item.value)
        low, high = self.values[source].low, self.values[source].high
        weight = item.weight.long().flatten(1)
        rising, falling = weight.clamp(min=0).sum(1), weight.clamp(max=0).sum(1)
        low, high = (min(low, 0), max(high, 0)) if item.geometry else (low, high)
        least, most = rising * low + falling * high, rising * high + falling * low
        bounds = float(least.min()), float(most.max())
        arrays = {"weight": item.weight}
        if item.limit >= FLOAT32_WHOLE:
            self.kinds[item.out] = torch.float64
        if not item.geometry:
            self._add("linear", item.name, (source,), item.out, bounds, {}, arrays, item)
            return
        stride, padding, dilation, groups = item.geometry
        kernel = list(item.weight.shape[2:])
        if padding == "same":
            around = zip(kernel, dilation, strict=True)
            padding = [step * (entries - 1) // 2 for entries, step in around]
        elif padding == "valid":
            padding = [0 for _ in kernel]
        settings = _window(len(kernel), kernel, stride, padding, dilation) | {"groups": groups}
        self._add("conv", item.name, (source,), item.out, bounds, settings, arrays, item)

    def _fire(self, item: Fire) -> None:
        """A layer of neurons; of several steps the level that is asked for, and the move there."""
        before = self.emitted.get(item.name)
        self.emitted[item.name] = item.out
        if not self.several:
            self._level(item)
            return
        asked = self._new(self.program.values[item.out])
        self._level(asked_for(item, asked))
        self._emit(item, self.at(asked), None if before is None else self.at(before))

    def _emit(self, item: Fire, asked: int, before: int | None) -> None:
        """What was emitted, moved towards the level that is asked for."""
        step = emission(item.spec)
        low, high = item.spec.limits if before is None else (-step.span, step.span)
        is_all = step.steps is None and step.least <= low and step.most >= high
        if is_all or before == asked:
            self.aliases[item.out] = asked
            return
        settings = {"span": step.span, "least": step.least, "most": step.most}
        arrays = {} if step.steps is None else {"steps": step.steps}
        inputs = (asked,) if before is None else (asked, before)
        self._add("emit", item.name, inputs, item.out, item.spec.limits, settings, arrays, item)

    def _level(self, item: Fire) -> None:
        item = replace(item, input=self._terms_apart(item.input))
        inputs = tuple(term.value for term in item.input.terms)
        if any(self.values[index].real for index in inputs):
            self._level_of_real(item, inputs)
            return
        program = narrow_program(self.program, item, self.values, inputs)
        steps, levels = emitted_levels(item)
        settings: dict[str, Any] = {"search": isinstance(item.spec.ladder, Binary)}
        table = tables.ThresholdTable(item, program)
        known = [(self.values[index].low, self.values[index].high) for index in inputs]
        arrays = self._sum(item, table, levels, known)
        if arrays is not None:
            settings["first"] = (
                int(levels[0]) if item.table is None else int(item.table.start.min())
            )
        elif item.table is None:
            settings |= {"low": int(steps[0]), "high": int(steps[-1])}
            arrays = {"levels": levels.int(), **formula_arrays(item.input)}
            if item.offset is not None:
                arrays["offset"] = item.offset.detach().float()
        else:
            hint = "no power of two makes its sum whole: quantize with functions='analog'"
            self.faults.append(Fault(item.name, "a function of a sum of two accumulators", hint))
            arrays, settings["first"] = {}, 0
        if item.table is not None:
            settings["search"] = False
            if not torch.equal(steps, levels):
                hint = "its thresholds are one rung each: convert with a ladder that reaches all"
                self.faults.append(Fault(item.name, "a function in several steps", hint))
        bounds = float(levels.min()), float(levels.max())
        self._add("fire", item.name, inputs, item.out, bounds, settings, arrays, item)

    def _level_of_real(self, item: Fire, inputs: tuple[int, ...]) -> None:
        """Neurons that read real numbers: the written formula."""
        if item.table is not None:
            hint = "whole numbers go in: quantize with functions='analog' for this layer"
            self.faults.append(Fault(item.name, "a function of real numbers", hint))
        steps, levels = emitted_levels(item)
        settings = {"search": False, "low": int(steps[0]), "high": int(steps[-1])}
        arrays = {"levels": levels.int(), **formula_arrays(item.input)}
        if item.offset is not None:
            arrays["offset"] = item.offset.detach().float()
        bounds = float(levels.min()), float(levels.max())
        self._add("fire", item.name, inputs, item.out, bounds, settings, arrays, item)

    def _sum(
        self,
        item: Fire,
        table: tables.ThresholdTable,
        levels: Tensor,
        known: list[tuple[int, int]],
    ) -> dict[str, Tensor] | None:
        """The sum whose comparisons are the level; the same in every step, where that is so."""
        factors = [*(term.multiplier for term in item.input.terms), item.input.bias, item.offset]
        key = item.name, item.spec, tuple(known), tuple(map(id, factors)), id(item.table)
        if key not in self._sums:
            self._sums[key] = threshold_sum(table, levels, known)
        found: dict[str, Tensor] | None = self._sums[key]
        return None if found is None else dict(found)

    def _read_out(self, item: ReadOut) -> None:
        item = replace(item, input=self._terms_apart(item.input))
        inputs = tuple(term.value for term in item.input.terms)
        out = max(self.program.values) + 1
        self.nodes.append(
            Node("read_out", "class scores", inputs, out, {}, formula_arrays(item.input))
        )
        self.sources[out] = item

    def _operate(self, item: Operate) -> None:
        read = [self.at(index) for index in slots((item.args, item.kwargs))]
        known = {*tables.CASTS, *tables.MOVES, *tables.MAXIMA, *tables.SUMS}
        whole = all(index in self.values and not self.values[index].real for index in read)
        is_whole = whole and bool(read) and (item.target in known or bool(tables.factor(item)))
        if self.real and (not is_whole or item.target in tables.MOVES):
            self._float(item)
        elif item.target in tables.CASTS:
            self.kinds[item.out[0]] = (
                torch.float64 if item.target is Tensor.double else torch.float32
            )
            self.aliases[item.out[0]] = self.at(item.args[0].index)
        elif item.target in tables.MOVES:
            self._move(item)
        elif item.target in tables.MAXIMA or item.target in tables.SUMS:
            self._reduce(item)
        else:
            self._scale(item)

    def _float(self, item: Operate) -> None:
        """An operator on real numbers, or one that moves whole ones; with those before it whose
        results have their images elsewhere than in front."""
        before = [self.pending.get(index, ()) for index in slots((item.args, item.kwargs))]
        operators = (*{id(one): one for some in before for one in some}.values(), item)
        read = read_by(operators)
        segment = Segment(
            operators, {index: self.kinds.get(index, torch.float32) for index in read}
        )
        shapes = {index: self.program.values[index].shape for index in read}
        sample = segment.sample(shapes)
        for out in item.out:
            self.kinds[out] = sample[out].dtype
            if not read or sample[out].shape != (2, *self.program.values[out].shape):
                self.pending[out] = operators
                continue
            places = segment.places(out, shapes)
            name = f"{item.target.__name__.split('.')[0]} {out}"
            kinds = {self.values[self.at(index)].real for index in read}
            alone = len({*map(self.at, read)}) == len(read)
            if places is not None and alone and len(kinds) == 1:
                self._gather(name, places, tuple(map(self.at, read)), out, segment)
                continue
            taken, arrays = take_constants(operators)
            inputs = tuple(dict.fromkeys(map(self.at, read)))
            settings = {"operators": taken, "reads": segment.reads}
            settings |= {"inputs": {index: inputs.index(self.at(index)) for index in read}}
            self._add("float", name, inputs, out, (-1, 1), settings, arrays, segment)

    def _gather(
        self, name: str, piece: Tensor, inputs: tuple[int, ...], out: int, source: Any
    ) -> None:
        """Numbers elsewhere; 0 stands for a zero."""
        low = min(self.values[index].low for index in inputs)
        high = max(self.values[index].high for index in inputs)
        count = sum(self.values[index].size for index in inputs)
        whole = len(inputs) == 1 and piece.numel() == count
        if whole and torch.equal(piece.flatten(), torch.arange(1, count + 1)):
            self._add("reshape", name, inputs, out, (low, high), {}, {}, source)
            return
        zeros = bool((piece == 0).any())
        bounds = (min(low, 0), max(high, 0)) if zeros else (low, high)
        self._add("gather", name, inputs, out, bounds, {}, {"index": piece.int()}, source)

    def _move(self, item: Operate) -> None:
        named = dict.fromkeys(slots((item.args, item.kwargs)))
        inputs = self._apart(named)
        shapes = {index: torch.zeros(1, *self.program.values[index].shape) for index in named}
        pieces = tables.move_sources(item, shapes, 1)
        for out, piece in zip(item.out, pieces, strict=True):
            name = f"{item.target.__name__.split('.')[0]} {out}"
            if tuple(piece.shape) != (1, *self.program.values[out].shape):
                hint = "moves images into one another's axis: it has no form image by image"
                self.faults.append(Fault(name, str(item.target), hint))
                self.values[out] = Value(tuple(self.program.values[out].shape), 0, 1)
                continue
            self._gather(name, piece[0], inputs, out, item)

    def _reduce(self, item: Operate) -> None:
        source, out = self.at(item.args[0].index), item.out[0]
        have, shape = self.values[source], self.program.values[out].shape
        largest = item.target in tables.MAXIMA
        name = f"{'largest' if largest else 'sum'} {out}"
        settings: dict[str, Any]
        if item.target in (aten.amax.default, torch.Tensor.sum):
            arguments = dict(zip(("dim", "keepdim"), item.args[1:], strict=False))
            arguments |= dict(item.kwargs)
            axes = arguments.get("dim", ())
            given = [axes] if isinstance(axes, int) else list(axes)
            axes = sorted(axis % (len(have.shape) + 1) for axis in given)
            if not axes or axes[0] == 0:
                hint = "reduces over images: it has no form image by image"
                self.faults.append(Fault(name, str(item.target), hint))
                axes = [1]
            settings, count = {"axes": axes}, math.prod(have.shape[axis - 1] for axis in axes)
            op = "max" if largest else "sum"
        else:
            names = ("kernel_size", "stride", "padding", "dilation")
            given_to = dict(zip(names[: 4 if largest else 3], item.args[1:], strict=False)) | dict(
                item.kwargs
            )
            kernel = given_to["kernel_size"]
            rest = (given_to.get("stride") or kernel, given_to.get("padding", 0))
            settings = _window(len(shape) - 1, kernel, *rest, given_to.get("dilation", 1))
            count, op = math.prod(settings["kernel"]), "max_pool" if largest else "sum_pool"
        low, high = have.low, have.high
        if not largest:
            low, high = min(low, 0) * count, max(high, 0) * count
        self._add(op, name, (source,), out, (low, high), settings, {}, item)

    def _scale(self, item: Operate) -> None:
        source, out = self.at(item.args[0].index), item.out[0]
        factor = item.args[1].long()
        factor = factor[0] if factor.dim() > len(self.values[source].shape) else factor
        most, have = int(factor.max()), self.values[source]
        bounds = min(have.low, 0) * most, max(have.high, 0) * most
        arrays = {"factor": factor.int()}
        self._add("scale", f"scale {out}", (source,), out, bounds, {}, arrays, item)


def _same(one: Node, other: Node) -> bool:
    """Whether two nodes that read the same values make the same."""
    if dict(one.settings) != dict(other.settings) or one.arrays.keys() != other.arrays.keys():
        return False
    pairs = [(one.arrays[key], other.arrays[key]) for key in one.arrays]
    return all(a is b or torch.equal(a, b) for a, b in pairs)


def _window(axes: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """The settings of a window, one number for each axis of space."""

    def each(numbers: Any) -> list[int]:
        sizes = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
        return [int(size) for size in (sizes if len(sizes) == axes else sizes * axes)]

    names = ("kernel", "stride", "padding", "dilation")
    return {
        name: each(value)
        for name, value in zip(names, (kernel, stride, padding, dilation), strict=True)
    }
