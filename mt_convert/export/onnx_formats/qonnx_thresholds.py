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
from ..integer_form import IntegerForm, Node, Value
from ..threshold_sums import INT32
from . import onnx_graph as shared
from .onnx_graph import Graph, Writer

QONNX_DOMAIN = "qonnx.custom_op.general"


def qonnx_refused(form: IntegerForm) -> list[Fault]:
    """What MultiThreshold nodes and whole numbers in float32 have no exact form for."""
    faults = []
    for node in form.nodes:
        wide = "sums beyond 2^24, which float32 does not hold: use fewer bits"
        if node.op == "fire" and "levels" in node.arrays:
            hint = "no power of two makes its sum whole: put an activation on the shortcut"
            faults.append(Fault(node.name, "a sum of two accumulators", hint))
        elif _is_wide(form, node):
            faults.append(Fault(node.name, node.op, wide))
    return faults


def _is_wide(form: IntegerForm, node: Node) -> bool:
    """Whether float32 would round what a node computes."""
    if node.op in ("conv", "linear"):
        return shared.furthest(form, node) >= shared.FLOAT32_WHOLE
    if node.op == "fire":
        return _reach(form, node) >= shared.FLOAT32_WHOLE
    return node.op not in ("encode", "read_out") and not shared.sum_fits(form, node)


def _reach(form: IntegerForm, node: Node) -> int:
    """The largest sum that a layer of neurons compares, or compares with."""
    total = sum(
        node.arrays[f"factor_{place}"].long().abs()
        * max(-form.values[index].low, form.values[index].high)
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
    """Sums of products."""
    linear = node.op == "linear"
    weight = node.arrays["weight"].T if linear else node.arrays["weight"]
    names = [inputs[0], graph.constant(f"{out}_weight", weight, np.float32)]
    groups = {} if linear else {"group": node.settings["groups"]}
    window = {} if linear else shared.window_settings(graph.form, node)
    graph.add("MatMul" if linear else "Conv", names, out, **window, **groups)


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


def _multi_threshold(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """One MultiThreshold node, of a function two; channels on axis 1, other rows laid out so."""
    shape, place = graph.form.values[node.out].shape, node.arrays["place"].long()
    value = graph.form.values[node.out]
    total = shared.whole_sum(graph, node, inputs, out)
    by_channel = place.numel() == place.shape[0] if place.dim() else False
    rows = place.expand(shape[0], *place.shape[1:]).flatten() if by_channel else None
    laid = shape if by_channel else (math.prod(shape),)
    if by_channel and len(shape) not in (1, 3):
        laid = (shape[0], math.prod(shape[1:]), 1)
    if laid != shape:
        total = shared.reshape(graph, total, laid, f"{out}_laid")

    def reached(name: str, made: str, first: int) -> str:
        thresholds = node.arrays[name]
        thresholds = thresholds[place.expand(shape).flatten() if rows is None else rows]
        ends = Value((), first, first + thresholds.shape[1])
        return graph.add(
            "MultiThreshold",
            [total, graph.constant(f"{made}_thresholds", thresholds, np.float32)],
            made,
            QONNX_DOMAIN,
            out_dtype=type_name(ends if "falls" in node.arrays else value),
            out_scale=1.0,
            out_bias=float(first),
            data_layout="NCHW" if len(laid) == 3 else "NC",
        )

    levels, first = out if laid == shape else f"{out}_levels", node.settings["first"]
    if "falls" in node.arrays:  # a function: where its level rises less where it falls
        ups, downs = reached("thresholds", f"{out}_ups", first), reached("falls", f"{out}_downs", 0)
        levels = graph.add("Sub", [ups, downs], levels)
    else:
        reached("thresholds", levels, first)
    if laid != shape:
        shared.reshape(graph, levels, shape, out)


_WRITERS: dict[str, Writer] = {
    "encode": shared.encode,
    "conv": _products,
    "linear": _products,
    "max_pool": _pool,
    "sum_pool": _pool,
    "fire": _multi_threshold,
    "read_out": _read_out,
}
