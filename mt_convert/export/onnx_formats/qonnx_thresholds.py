"""The file of `qonnx`, for QONNX's executor and FINN: float32 tensors that hold whole numbers below
2^24; neurons are MultiThreshold nodes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import Fault
from ...integer_engine.terms import FLOAT32_WHOLE
from ...integer_engine.threshold_tables import ThresholdTable
from ...neurons.totals import position
from ..forms.float32_sums import furthest, split_unit, sum_fits
from ..forms.nodes import (
    IntegerForm,
    Node,
    Value,
    emitted_levels,
    formula_arrays,
    narrow_program,
)
from ..forms.threshold_sums import INT32, thresholds_beside
from . import onnx_graph as shared
from .onnx_graph import Graph, Writer

QONNX_DOMAIN = "qonnx.custom_op.general"


def qonnx_refused(form: IntegerForm) -> list[Fault]:
    """What MultiThreshold nodes and whole numbers in float32 have no exact form for."""
    hint = "sums beyond 2^24, which float32 does not hold: use fewer bits"
    return [Fault(node.name, node.op, hint) for node in form.nodes if _is_wide(form, node)]


def _is_wide(form: IntegerForm, node: Node) -> bool:
    """Whether float32 would round what a node computes, where the network does not."""
    if node.op in ("conv", "linear"):
        if furthest(form, node) < FLOAT32_WHOLE:
            return False
        readers = [one for one in form.nodes if one.op == "fire" and node.out in one.inputs]
        in_whole = any(not _has_formula(form, one) for one in readers)
        return in_whole or split_unit(form, node) is None
    if node.op == "fire":
        one_by_one = "levels" in node.arrays or _has_formula(form, node)
        return not one_by_one and _reach(form, node) >= FLOAT32_WHOLE
    return node.op not in ("encode", "read_out") and not sum_fits(form, node)


def _has_formula(form: IntegerForm, node: Node) -> bool:
    """Whether neurons compare their float32 formula: where no whole numbers below 2^24 do."""
    if form.sources[node.out].table is not None:  # a function has whole thresholds of its own
        return False
    if any(_size(form.values[index]) >= FLOAT32_WHOLE for index in node.inputs):
        return True
    if "levels" in node.arrays:
        return _thresholds_beside(form, node) is None
    return _reach(form, node) >= FLOAT32_WHOLE


def _thresholds_beside(form: IntegerForm, node: Node) -> dict[str, Tensor] | None:
    """The thresholds for each level beside an accumulator, where no sum of both is whole; they are
    looked for once, though both refusing and writing ask."""
    if node.out not in form.beside:
        item = form.sources[node.out]
        table = ThresholdTable(item, narrow_program(form.program, item, form.values, node.inputs))
        known = [(form.values[index].low, form.values[index].high) for index in node.inputs]
        form.beside[node.out] = thresholds_beside(table, emitted_levels(item)[1], known)
    return form.beside[node.out]


def _size(value: Value) -> int:
    """The largest number that a value can hold, whatever its sign."""
    return max(-value.low, value.high)


def _reach(form: IntegerForm, node: Node) -> int:
    """The largest sum that a layer of neurons compares, or compares with."""
    total = sum(
        node.arrays[f"factor_{place}"].long().abs() * _size(form.values[index])
        for place, index in enumerate(node.inputs)
    )
    assert isinstance(total, Tensor)
    thresholds = node.arrays["thresholds"]
    ends = int(thresholds.abs().max()) if thresholds.numel() else 0
    return max(int(total.max()), min(ends, INT32))


def write_qonnx(form: IntegerForm, path: Path) -> None:
    """Write the graph for QONNX."""
    model = shared.build(form, np.float32, _WRITERS).model({"": shared.OPSET, QONNX_DOMAIN: 1})
    _annotate(model, form)
    shared.store(model, path)


def _products(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """Sums of products; where float32 does not hold them, of both parts of what is read."""
    linear, source = node.op == "linear", inputs[0]
    weight = node.arrays["weight"].T if linear else node.arrays["weight"]
    constant = graph.constant(f"{out}_weight", weight, np.float32)
    groups = {} if linear else {"group": node.settings["groups"]}
    window = {} if linear else shared.window_settings(graph.form, node)
    op, settings = "MatMul" if linear else "Conv", {**window, **groups}
    if furthest(graph.form, node) < FLOAT32_WHOLE:
        graph.add(op, [source, constant], out, **settings)
        return
    unit = graph.constant(f"{out}_unit", split_unit(graph.form, node), np.float32)
    high = graph.add("Floor", [graph.add("Div", [source, unit], f"{out}_over")], f"{out}_high")
    upper = graph.add("Mul", [high, unit], f"{out}_upper")
    low = graph.add("Sub", [source, upper], f"{out}_low")
    sums = [graph.add(op, [part, constant], f"{part}_sum", **settings) for part in (high, low)]
    far = graph.add("Mul", [sums[0], unit], f"{out}_far")
    graph.add("Add", [far, sums[1]], out)


def _pool(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    shared.pool(graph, node, inputs[0], out)


def _read_out(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    shared.formula(graph, node.arrays, inputs, out, None)


def _annotate(model: Any, form: IntegerForm) -> None:
    """The types of whole numbers, as QONNX keeps them beside tensors."""
    from onnx.numpy_helper import to_array

    ends = {shared.value_name(index): value for index, value in form.values.items()}
    for item in model.graph.initializer:
        if item.name.endswith(("_weight", "_thresholds")) and item.dims:
            numbers = to_array(item)
            low, high = (int(end) for end in (numbers.min(initial=0), numbers.max(initial=0)))
            ends[item.name] = Value((), low, high)
    for name, value in ends.items():
        note = model.graph.quantization_annotation.add()
        note.tensor_name = name
        entry = note.quant_parameter_tensor_names.add()
        entry.key, entry.value = "finn_datatype", type_name(value)


def type_name(value: Value) -> str:
    """QONNX's name of the least type that holds a value.

    Example:
        >>> type_name(Value((), 0, 15)), type_name(Value((), -8, 7))
        ('UINT4', 'INT4')
    """
    return f"{'INT' if value.low < 0 else 'UINT'}{value.bits}"


class _Laid:
    """The neurons of a layer as MultiThreshold reads them: channels on axis 1, where each has its
    thresholds; else each neuron is a channel."""

    def __init__(self, graph: Graph, node: Node, place: Tensor) -> None:
        self.graph, self.shape = graph, graph.form.values[node.out].shape
        by_channel = place.numel() == place.shape[0] if place.dim() else False
        along = (self.shape[0], *place.shape[1:]) if by_channel else self.shape
        self.rows = place.long().expand(along).flatten()
        self.laid = self.shape if by_channel else (math.prod(self.shape),)
        if by_channel and len(self.shape) not in (1, 3):
            self.laid = (self.shape[0], math.prod(self.shape[1:]), 1)

    @property
    def is_plain(self) -> bool:
        """Whether the neurons lie so already."""
        return self.laid == self.shape

    def lay(self, name: str) -> str:
        """A value of the layer's shape, laid out."""
        return (
            name if self.is_plain else shared.reshape(self.graph, name, self.laid, f"{name}_laid")
        )

    def lay_back(self, name: str, out: str) -> None:
        """The levels, in the layer's own shape."""
        if not self.is_plain:
            shared.reshape(self.graph, name, self.shape, out)

    def add_thresholds(
        self, total: str, thresholds: Tensor, made: str, first: int, ends: Value
    ) -> str:
        """A MultiThreshold node: how many of each row's thresholds [rows, n] a sum reaches."""
        return self.graph.add(
            "MultiThreshold",
            [total, self.graph.constant(f"{made}_thresholds", thresholds[self.rows], np.float32)],
            made,
            QONNX_DOMAIN,
            out_dtype=type_name(ends),
            out_scale=1.0,
            out_bias=float(first),
            data_layout="NCHW" if len(self.laid) == 3 else "NC",
        )


def _multi_threshold(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """One MultiThreshold node, of a function two, or one for each level beside an accumulator; one
    behind the float32 formula where whole numbers do not do."""
    if _has_formula(graph.form, node):
        _by_formula(graph, node, inputs, out)
        return
    if "levels" in node.arrays:
        _level_by_level(graph, node, inputs, out)
        return
    arrays, first = node.arrays, node.settings["first"]
    at = _Laid(graph, node, arrays["place"])
    total = at.lay(shared.whole_sum(graph, node, inputs, out))
    levels = out if at.is_plain else f"{out}_levels"
    if "falls" in arrays:  # a function: where its level rises less where it falls
        rises, falls = arrays["thresholds"], arrays["falls"]
        ends = Value((), first, first + rises.shape[1])
        ups = at.add_thresholds(total, rises, f"{out}_ups", first, ends)
        downs = at.add_thresholds(total, falls, f"{out}_downs", 0, Value((), 0, falls.shape[1]))
        graph.add("Sub", [ups, downs], levels)
    else:
        at.add_thresholds(total, arrays["thresholds"], levels, first, graph.form.values[node.out])
    at.lay_back(levels, out)


def _by_formula(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """The written formula, each operator rounded by itself, and the least floats that round to each
    level or beyond, the same for all neurons."""
    item, ends = graph.form.sources[node.out], graph.form.values[node.out]
    offset = None if item.offset is None else item.offset.detach().float()
    drive = shared.formula(graph, formula_arrays(item.input), inputs, f"{out}_drive", offset)
    steps, levels = emitted_levels(item)
    thresholds = position(steps[1:].float()).repeat_interleave(levels.diff())
    is_plain = len(ends.shape) in (1, 3)
    if not is_plain:
        drive = shared.reshape(graph, drive, (ends.size,), f"{out}_laid")
    level = graph.add(
        "MultiThreshold",
        [drive, graph.constant(f"{out}_half_way", thresholds[None], np.float32)],
        out if is_plain else f"{out}_levels",
        QONNX_DOMAIN,
        out_dtype=type_name(ends),
        out_scale=1.0,
        out_bias=float(levels[0]),
        data_layout="NCHW" if len(ends.shape) == 3 else "NC",
    )
    if not is_plain:
        shared.reshape(graph, level, ends.shape, out)


def _level_by_level(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """An accumulator beside levels of which no sum is whole: its thresholds for each of them, of
    which the one counts that is there."""
    arrays = _thresholds_beside(graph.form, node)
    assert arrays is not None
    at, thresholds, free = (
        _Laid(graph, node, arrays["place"]),
        arrays["thresholds"],
        int(arrays["free"]),
    )
    sign = arrays["factor"][arrays["place"].long()]
    total = graph.add(
        "Mul", [inputs[free], graph.constant(f"{out}_sign", sign, np.float32)], f"{out}_total"
    )
    total, others = at.lay(total), [name for index, name in enumerate(inputs) if index != free]
    others = [at.lay(graph.add("Identity", [name], f"{out}_{name}")) for name in others]
    first, result = int(emitted_levels(graph.form.sources[node.out])[1][0]), ""
    ends = graph.form.values[node.out]
    for index, beside in enumerate(arrays["grid"].tolist()):
        made = at.add_thresholds(total, thresholds[:, index], f"{out}_at_{index}", first, ends)
        for name, level in zip(others, beside, strict=True):
            there = graph.add(
                "Equal",
                [name, graph.constant(f"level_{level}", float(level), np.float32)],
                f"{made}_is_{name}",
            )
            made = graph.add(
                "Mul",
                [made, graph.cast(there, "float", f"{made}_one_{name}")],
                f"{made}_of_{name}",
            )
        result = graph.add("Add", [result, made], f"{out}_sum_{index}") if result else made
    graph.add("Identity", [result], out if at.is_plain else f"{out}_levels")
    at.lay_back(f"{out}_levels", out)


_WRITERS: dict[str, Writer] = {
    "encode": shared.encode,
    "conv": _products,
    "linear": _products,
    "max_pool": _pool,
    "sum_pool": _pool,
    "fire": _multi_threshold,
    "read_out": _read_out,
}
