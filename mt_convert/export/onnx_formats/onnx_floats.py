"""Operators on real numbers as ONNX nodes: the same operators, whose sums are the runtime's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ...errors import Fault
from ...integer_engine.program import Operate, Slot
from ...integer_engine.terms import BATCH
from ..forms.float_segments import Constant
from ..forms.nodes import IntegerForm, Node
from .onnx_graph import Graph

KINDS = {torch.float32: "float", torch.float64: "double"}


class _Segment:
    """The operators of one node while they are written: names of what they read and make."""

    def __init__(self, graph: Graph, node: Node, inputs: list[str], out: str) -> None:
        self.graph, self.node, self.out, self.first = graph, node, out, inputs[0]
        self.names: dict[Any, str] = {}
        given = node.settings["inputs"]
        for index, kind in node.settings["reads"].items():
            value, name = graph.form.values[node.inputs[given[index]]], inputs[given[index]]
            if not value.real or kind is not torch.float32:
                name = graph.cast(name, KINDS[kind], f"{out}_{KINDS[kind]}_{index}")
            self.names[index] = name

    def name(self, part: Any) -> str:
        """An argument: a value, a constant or a number."""
        if isinstance(part, Slot):
            return self.names[part.index]
        if isinstance(part, Constant):
            array = self.node.arrays[f"constant_{part.index}"]
            return self.graph.constant(f"{self.out}_{part.index}", array, array.numpy().dtype)
        return self.graph.constant(f"{self.out}_number_{part}", float(part), np.float32)

    def sizes(self, sizes: Any, name: str) -> str:
        """A shape; the size of the batch is that of the node's first input."""
        if not any(size > 1 and size % BATCH == 0 for size in sizes):
            return self.graph.constant(f"{name}_shape", list(sizes), np.int64)
        parts = []
        for place, size in enumerate(sizes):
            if size > 1 and size % BATCH == 0:
                batch = f"{name}_batch"
                parts.append(self.graph.add("Shape", [self.first], batch, start=0, end=1))
                if size != BATCH:
                    times = self.graph.constant(f"{name}_times", [size // BATCH], np.int64)
                    parts[-1] = self.graph.add("Mul", [batch, times], f"{name}_images_{place}")
            else:
                fixed = f"{name}_size_{place}"
                parts.append(self.graph.constant(fixed, [size], np.int64))
        return self.graph.add("Concat", parts, f"{name}_shape", axis=0)


Translator = Callable[[_Segment, Operate, str], None]


def _two(op: str) -> Translator:
    def write(segment: _Segment, item: Operate, name: str) -> None:
        segment.graph.add(op, [segment.name(part) for part in item.args[:2]], name)

    return write


def _cat(segment: _Segment, item: Operate, name: str) -> None:
    parts = [segment.name(part) for part in item.args[0]]
    axis = item.args[1] if len(item.args) > 1 else item.kwargs.get("dim", 0)
    segment.graph.add("Concat", parts, name, axis=axis)


def _expand(segment: _Segment, item: Operate, name: str) -> None:
    sizes = [1 if size == -1 else size for size in item.args[1]]
    shape = segment.sizes(sizes, name)
    segment.graph.add("Expand", [segment.name(item.args[0]), shape], name)


def _layer_norm(segment: _Segment, item: Operate, name: str) -> None:
    x, shape, *rest = item.args
    given = dict(zip(("weight", "bias", "eps"), rest, strict=False)) | dict(item.kwargs)
    weight, bias = given.get("weight"), given.get("bias")
    ones = segment.graph.constant(f"{name}_ones", np.ones(list(shape)), np.float32)
    names = [segment.name(x), ones if weight is None else segment.name(weight)]
    names += [] if bias is None else [segment.name(bias)]
    eps = float(given.get("eps", 1e-5))
    segment.graph.add("LayerNormalization", names, name, axis=-len(shape), epsilon=eps)


def _softmax(segment: _Segment, item: Operate, name: str) -> None:
    segment.graph.add("Softmax", [segment.name(item.args[0])], name, axis=item.args[1])


def _reshape(segment: _Segment, item: Operate, name: str) -> None:
    shape = segment.sizes(item.args[1], name)
    segment.graph.add("Reshape", [segment.name(item.args[0]), shape], name)


def _permute(segment: _Segment, item: Operate, name: str) -> None:
    segment.graph.add("Transpose", [segment.name(item.args[0])], name, perm=list(item.args[1]))


def _same(segment: _Segment, item: Operate, name: str) -> None:
    segment.graph.add("Identity", [segment.name(item.args[0])], name)


def _cast(kind: str) -> Translator:
    def write(segment: _Segment, item: Operate, name: str) -> None:
        segment.graph.cast(segment.name(item.args[0]), kind, name)

    return write


_TRANSLATORS: dict[str, Translator] = {
    **{name: _two(op) for name, op in (("mul", "Mul"), ("add", "Add"), ("sub", "Sub"))},
    **{"div": _two("Div"), "matmul": _two("MatMul"), "bmm": _two("MatMul")},
    **{"cat": _cat, "expand": _expand, "layer_norm": _layer_norm, "softmax": _softmax},
    **{"view": _reshape, "reshape": _reshape, "_unsafe_view": _reshape, "permute": _permute},
    **dict.fromkeys(("clone", "contiguous", "alias", "detach"), _same),
    **{"float": _cast("float"), "double": _cast("double")},
}
_TAKEN = {  # arguments beyond the operator's own that change nothing here
    "clone": {"memory_format"},
    "contiguous": {"memory_format"},
    "layer_norm": {"weight", "bias", "eps", "cudnn_enable"},
    "cat": {"dim"},
}


def write_float(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """The operators of a node, one after the other."""
    segment = _Segment(graph, node, inputs, out)
    for item in node.settings["operators"]:
        name = out if item is node.settings["operators"][-1] else f"{out}_of_{item.out[0]}"
        _TRANSLATORS[name_of(item)](segment, item, name)
        segment.names[item.out[0]] = name


def float_faults(form: IntegerForm) -> list[Fault]:
    """Operators on real numbers without ONNX nodes here."""
    faults = []
    for node in form.nodes:
        for item in node.settings["operators"] if node.op == "float" else ():
            kwargs: Mapping[str, Any] = {k: v for k, v in item.kwargs.items() if v is not None}
            known = name_of(item) in _TRANSLATORS and len(item.out) == 1
            if not known or set(kwargs) - _TAKEN.get(name_of(item), set()):
                hint = "has no ONNX nodes here: write torch"
                faults.append(Fault(node.name, str(item.target), hint))
    return faults


def name_of(item: Operate) -> str:
    """What torch calls an operator.

    Example:
        >>> name_of(Operate((1,), torch.ops.aten.layer_norm.default, (), {}))
        'layer_norm'
    """
    return str(item.target.__name__).split(".")[0]
