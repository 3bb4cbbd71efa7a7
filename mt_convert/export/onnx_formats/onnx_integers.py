"""The file of `onnx`, for onnxruntime: int32 throughout.

Products are ConvInteger and MatMulInteger of unsigned bytes, weights moved up by 128: products of
signed bytes saturate at 16 bits on some processors. A level is a count of comparisons, or, of more
thresholds than `MOST_COMPARED`, the written float32 formula.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...errors import Fault
from ..forms.float32_sums import gain_of, sum_fits
from ..forms.nodes import IntegerForm, Node, Value, emitted_levels, formula_arrays
from ..forms.threshold_sums import INT32
from . import onnx_graph as shared
from .onnx_floats import float_faults, write_float
from .onnx_graph import Graph, Writer

MOST_COMPARED = 15


def _bytes(value: Value) -> int:
    """How many unsigned bytes hold a value, moved up where it can be below 0."""
    return max(1, -(-(value.high - min(value.low, 0)).bit_length() // 8))


def _largest_part(form: IntegerForm, node: Node) -> float:
    """How far sums over some bytes of the inputs can go; of inputs of one byte no further than the
    layer's own."""
    value = form.values[node.inputs[0]]
    return 0 if _bytes(value) == 1 else gain_of(node) * (value.high - min(value.low, 0))


def onnx_refused(form: IntegerForm) -> list[Fault]:
    """What onnxruntime has no exact kernels for."""
    faults = float_faults(form)
    for node in form.nodes:
        if node.op in ("conv", "linear") and _largest_part(form, node) >= INT32:
            hint = "sums of the bytes of its inputs beyond 2^31: use fewer bits"
            faults.append(Fault(node.name, node.op, hint))
        elif node.op in ("max_pool", "sum_pool") and not sum_fits(form, node):
            faults.append(Fault(node.name, node.op, "sums beyond 2^24: use fewer bits"))
    return faults


def write_onnx(form: IntegerForm, path: Path) -> None:
    """Write the graph for onnxruntime."""
    shared.store(shared.build(form, np.int32, _WRITERS).model({"": shared.OPSET}), path)


def _encode(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    graph.cast(shared.encode(graph, node, inputs, f"{out}_levels"), "int32", out)


def _pool(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    source = graph.cast(inputs[0], "float", f"{out}_float")
    graph.cast(shared.pool(graph, node, source, f"{out}_pooled"), "int32", out)


def _read_out(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    shared.formula(graph, node.arrays, _floats(graph, inputs, out), out, None)


def _floats(graph: Graph, inputs: list[str], out: str) -> list[str]:
    """Inputs as float32."""
    return [graph.cast(name, "float", f"{out}_float_{place}") for place, name in enumerate(inputs)]


def _products(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """Sums of products of unsigned bytes, one after the other where levels have several."""
    (source,) = inputs
    value, weight = graph.form.values[node.inputs[0]], node.arrays["weight"].int()
    linear = node.op == "linear"
    settings = (
        {}
        if linear
        else shared.window_settings(graph.form, node) | {"group": node.settings["groups"]}
    )
    weight = weight.T if linear else weight
    names = [
        graph.constant(f"{out}_weight", weight + 128, np.uint8),
        graph.constant(f"{out}_weight_zero", 128, np.uint8),
    ]
    up, count, total = -min(value.low, 0), _bytes(value), ""
    if up:
        source = graph.add(
            "Add", [source, graph.constant(f"{out}_up", up, np.int32)], f"{out}_raised"
        )
    for place in range(count):
        made = out if count == 1 else f"{out}_byte_{place}"
        byte = _byte(graph, source, place, count, made)
        one = graph.cast(byte, "uint8", f"{made}_unsigned")
        zero = graph.constant(f"{made}_zero", up >> 8 * place & 255, np.uint8)
        op = "MatMulInteger" if linear else "ConvInteger"
        graph.add(op, [one, names[0], zero, names[1]], made, **settings)
        if place:
            factor = graph.constant(f"byte_{place}", 256**place, np.int32)
            made = graph.add("Mul", [made, factor], f"{made}_times")
            total = graph.add("Add", [total, made], out if place == count - 1 else f"{made}_sum")
        else:
            total = made


def _byte(graph: Graph, source: str, place: int, count: int, made: str) -> str:
    """A byte of numbers that are not below 0; the last one is all that is left."""
    if place:
        unit = graph.constant(f"byte_{place}", 256**place, np.int32)
        source = graph.add("Div", [source, unit], f"{made}_over")
    if place == count - 1:
        return source
    return graph.add("Mod", [source, graph.constant("byte_1", 256, np.int32)], f"{made}_rest")


def _count(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """Levels: comparisons of whole numbers, or the written formula."""
    arrays, first = node.arrays, node.settings.get("first", 0)
    is_function = "falls" in arrays or graph.form.sources[node.out].table is not None
    many = "levels" in arrays or arrays["thresholds"].shape[1] > MOST_COMPARED
    if many and not is_function:
        _levels_by_formula(graph, node, inputs, out)
        return
    total = shared.whole_sum(graph, node, inputs, out)
    level = _count_reached(graph, node, total, "thresholds", f"{out}_count")
    if "falls" in arrays:
        down = _count_reached(graph, node, total, "falls", f"{out}_fallen")
        level = graph.add("Sub", [level, down], f"{out}_both")
    graph.add("Add", [level, graph.constant(f"{out}_first", first, np.int32)], out)


def _count_reached(graph: Graph, node: Node, total: str, name: str, out: str) -> str:
    """How many thresholds a sum reaches: each compared, or, of many, a search in halves."""
    place, numbers = node.arrays["place"].long(), node.arrays[name]
    count = numbers.shape[1]
    if count <= MOST_COMPARED:
        axis = graph.constant("last_axis", [-1], np.int64)
        wide = graph.add("Unsqueeze", [total, axis], f"{out}_wide")
        constant = graph.constant(f"{out}_thresholds", numbers[place], np.int32)
        reached = graph.add("GreaterOrEqual", [wide, constant], f"{out}_reached")
        ones = graph.cast(reached, "int32", f"{out}_ones")
        return graph.add("ReduceSum", [ones, axis], out, keepdims=0)
    width = 1 << count.bit_length()
    beyond = torch.full((len(numbers), width - count), INT32 - 1)
    rows = torch.cat([numbers.long(), beyond], 1).flatten()
    table = graph.constant(f"{out}_thresholds", rows, np.int32)
    at = start = graph.constant(f"{out}_start", place * width - 1, np.int64)
    for bit in reversed(range(count.bit_length())):
        step = graph.constant(f"step_{bit}", 1 << bit, np.int64)
        higher = graph.add("Add", [at, step], f"{out}_higher_{bit}")
        threshold = graph.add("Gather", [table, higher], f"{out}_threshold_{bit}", axis=0)
        passed = graph.add("GreaterOrEqual", [total, threshold], f"{out}_passed_{bit}")
        at = graph.add("Where", [passed, higher, at], f"{out}_at_{bit}")
    return graph.cast(graph.add("Sub", [at, start], f"{out}_found"), "int32", out)


def _levels_by_formula(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """clamp(round(formula)), and which level that is."""
    item = graph.form.sources[node.out]
    offset = None if item.offset is None else item.offset.detach().float()
    drive = shared.formula(
        graph, formula_arrays(item.input), _floats(graph, inputs, out), f"{out}_drive", offset
    )
    low, high = (int(end) for end in item.spec.limits)
    ends = [
        graph.constant(f"{out}_low", low, np.float32),
        graph.constant(f"{out}_high", high, np.float32),
    ]
    clipped = graph.add("Clip", [graph.add("Round", [drive], f"{out}_round"), *ends], f"{out}_clip")
    steps, levels = emitted_levels(item)
    if torch.equal(levels, steps):
        graph.cast(clipped, "int32", out)
        return
    rows = graph.cast(clipped, "int64", f"{out}_row")
    rows = graph.add("Sub", [rows, graph.constant(f"{out}_first_row", low, np.int64)], f"{out}_at")
    graph.add("Gather", [graph.constant(f"{out}_levels", levels, np.int32), rows], out, axis=0)


def _emit(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """What was emitted before, moved towards the level that is asked for."""
    distance = inputs[0]
    if len(inputs) > 1:
        distance = graph.add("Sub", inputs, f"{out}_distance")
    moved = out if len(inputs) == 1 else f"{out}_step"
    if "steps" in node.arrays:
        rows = graph.cast(distance, "int64", f"{out}_row")
        span = graph.constant(f"{out}_span", node.settings["span"], np.int64)
        rows = graph.add("Add", [rows, span], f"{out}_at")
        steps = graph.constant(f"{out}_steps", node.arrays["steps"], np.int32)
        graph.add("Gather", [steps, rows], moved, axis=0)
    else:
        ends = [
            graph.constant(f"{out}_{end}", node.settings[end], np.int32)
            for end in ("least", "most")
        ]
        graph.add("Clip", [distance, *ends], moved)
    if len(inputs) > 1:
        graph.add("Add", [inputs[1], moved], out)


_WRITERS: dict[str, Writer] = {
    "encode": _encode,
    "conv": _products,
    "linear": _products,
    "max_pool": _pool,
    "sum_pool": _pool,
    "fire": _count,
    "emit": _emit,
    "float": write_float,
    "read_out": _read_out,
}
