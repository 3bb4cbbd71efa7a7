"""A graph of ONNX nodes: what the files of `onnx` and `qonnx` have in common.

The batch is free in both. Values are called value_N, as in the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..forms.nodes import IntegerForm, Node

IR_VERSION = 10
OPSET = 18


def missing(*packages: str, extra: str = "export") -> str | None:
    """Which packages are not installed, with what to do.

    Example:
        >>> missing("numpy", "nopackage")
        'not installed: nopackage; pip install mt-convert[export]'
    """
    absent = [name for name in packages if find_spec(name) is None]
    hint = f"not installed: {', '.join(absent)}; pip install mt-convert[{extra}]"
    return hint if absent else None


class Graph:
    """Nodes and constants so far; whole numbers are of one ``kind``, int32 or float32."""

    def __init__(self, form: IntegerForm, kind: Any) -> None:
        import onnx

        self.onnx: Any = onnx
        self.form, self.kind = form, kind
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names: dict[str, str] = {}
        self._same: dict[Any, str] = {}

    def constant(self, name: str, numbers: Any, kind: Any) -> str:
        """An initializer; of several steps the same numbers stand there once."""
        if name not in self._names:
            array = numbers.numpy() if isinstance(numbers, Tensor) else np.asarray(numbers)
            array = np.ascontiguousarray(array.astype(kind)).reshape(array.shape)
            steps = self.form.time_steps > 1
            key = (array.dtype.str, array.shape, array.tobytes()) if steps else name
            if key not in self._same:
                self._same[key] = name
                self.constants.append(self.onnx.numpy_helper.from_array(array, name))
            self._names[name] = self._same[key]
        return self._names[name]

    def add(self, op: str, inputs: list[str], out: str, domain: str = "", **settings: Any) -> str:
        """A node with one output."""
        helper = self.onnx.helper
        self.nodes.append(
            helper.make_node(op, inputs, [out], name=f"{op}_{out}", domain=domain, **settings)
        )
        return out

    def cast(self, source: str, kind: str, out: str | None = None) -> str:
        """The same numbers in another type."""
        to = getattr(self.onnx.TensorProto, kind.upper())
        return self.add("Cast", [source], out or f"{source}_{kind}", to=to)

    def model(self, opsets: dict[str, int]) -> Any:
        """The whole, as a model."""
        helper, form, last = self.onnx.helper, self.form, self.form.nodes[-1]

        def tensor(name: str, kind: Any, shape: tuple[int, ...]) -> Any:
            number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            return helper.make_tensor_value_info(name, number, ["batch", *shape])

        graph = helper.make_graph(
            self.nodes,
            "network",
            [tensor("image", np.float32, form.image_shape)],
            [tensor("logits", np.float32, form.values[last.inputs[0]].shape)],
            self.constants,
            value_info=[
                tensor(value_name(index), np.float32 if value.real else self.kind, value.shape)
                for index, value in form.values.items()
            ],
        )
        imports = [helper.make_opsetid(name, number) for name, number in opsets.items()]
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="mt-convert"
        )
        if form.time_steps > 1:
            helper.set_model_props(model, {"time_steps": str(form.time_steps)})
        return model


def value_name(index: int) -> str:
    """What a value is called in the graph."""
    return "image" if index == 0 else f"value_{index}"


def names_of(form: IntegerForm, node: Node) -> tuple[list[str], str]:
    """What a node reads and makes, by name."""
    out = "logits" if node is form.nodes[-1] else value_name(node.out)
    return [value_name(index) for index in node.inputs], out


# ------------------------------------------------------------------------------- what both share


def encode(graph: Graph, node: Node, inputs: list[str], out: str) -> str:
    """Levels of the image, in float32."""
    scale = graph.constant(f"{out}_scale", node.arrays["scale"], np.float32)
    low = graph.constant(f"{out}_low", node.settings["low"], np.float32)
    high = graph.constant(f"{out}_high", node.settings["high"], np.float32)
    steps = graph.add("Div", [inputs[0], scale], f"{out}_steps")
    return graph.add("Clip", [graph.add("Round", [steps], f"{out}_whole"), low, high], out)


def formula(
    graph: Graph, arrays: Mapping[str, Tensor], inputs: list[str], out: str, offset: Tensor | None
) -> str:
    """A written sum on float32 inputs."""

    def constant(name: str, array: Tensor) -> str:
        return graph.constant(f"{out}_{name}", array, np.float32)

    total = ""
    for index, source in enumerate(inputs):
        factor = constant(f"multiplier_{index}", arrays[f"multiplier_{index}"])
        product = graph.add("Mul", [source, factor], f"{out}_product_{index}")
        total = graph.add("Add", [total, product], f"{out}_sum_{index}") if total else product
        if index == 0 and "bias" in arrays:
            total = graph.add("Add", [total, constant("bias", arrays["bias"])], f"{out}_biased")
    if offset is not None:
        total = graph.add("Add", [total, constant("offset", offset)], f"{out}_moved")
    return graph.add("Identity", [total], out)


def reshape(graph: Graph, source: str, shape: tuple[int, ...] | list[int], out: str) -> str:
    size = graph.constant(f"{out}_shape", [0, *shape], np.int64)
    return graph.add("Reshape", [source, size], out)


def _gather(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """Entries of the inputs, flattened and joined behind a zero."""
    index = node.arrays["index"].long()
    flat = [
        reshape(graph, source, [-1], f"{out}_flat_{place}") for place, source in enumerate(inputs)
    ]
    joined = flat[0] if len(flat) == 1 else graph.add("Concat", flat, f"{out}_joined", axis=1)
    if bool((index == 0).any()):
        amounts = graph.constant(f"{out}_amounts", [0, 1, 0, 0], np.int64)
        kind = np.float32 if graph.form.values[node.out].real else graph.kind
        zero = graph.constant(f"{out}_zero", 0, kind)
        joined, index = graph.add("Pad", [joined, amounts, zero], f"{out}_padded"), index + 1
    places = graph.constant(f"{out}_places", index.flatten() - 1, np.int64)
    chosen = graph.add("Gather", [joined, places], f"{out}_chosen", axis=1)
    reshape(graph, chosen, tuple(index.shape), out)


def window_pads(form: IntegerForm, node: Node) -> list[int]:
    """Zeros before and behind each axis of space, as far as the last window reaches."""
    source, value = form.values[node.inputs[0]], form.values[node.out]
    before, behind = [], []
    for axis, size in enumerate(source.shape[1:]):
        kernel, stride, padding, dilation = (
            node.settings[name][axis] for name in ("kernel", "stride", "padding", "dilation")
        )
        reach = (kernel - 1) * dilation + (value.shape[1 + axis] - 1) * stride + 1
        before.append(padding)
        behind.append(max(0, reach - padding - size))
    return before + behind


def window_settings(form: IntegerForm, node: Node) -> dict[str, Any]:
    settings = node.settings
    return {
        "kernel_shape": settings["kernel"],
        "strides": settings["stride"],
        "dilations": settings["dilation"],
        "pads": window_pads(form, node),
    }


def pool(graph: Graph, node: Node, source: str, out: str) -> str:
    """A pool on float32; sums as a convolution with ones."""
    window = window_settings(graph.form, node)
    if node.op == "max_pool":
        return graph.add("MaxPool", [source], out, **window)
    channels = graph.form.values[node.inputs[0]].shape[0]
    ones = np.ones((channels, 1, *node.settings["kernel"]))
    weight = graph.constant(f"{out}_ones", ones, np.float32)
    return graph.add("Conv", [source, weight], out, group=channels, **window)


def _reduce(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """A maximum or a sum over whole axes."""
    op = "ReduceMax" if node.op == "max" else "ReduceSum"
    axes = graph.constant(f"{out}_axes", node.settings["axes"], np.int64)
    reduced = graph.add(op, [inputs[0], axes], f"{out}_reduced", keepdims=0)
    reshape(graph, reduced, graph.form.values[node.out].shape, out)


def _scale(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """Whole numbers times whole numbers."""
    factor = graph.constant(f"{out}_factor", node.arrays["factor"], graph.kind)
    graph.add("Mul", [inputs[0], factor], out)


def _reshape(graph: Graph, node: Node, inputs: list[str], out: str) -> None:
    """The same numbers in another shape."""
    reshape(graph, inputs[0], graph.form.values[node.out].shape, out)


def whole_sum(graph: Graph, node: Node, inputs: list[str], out: str) -> str:
    """The sum that is compared: each input times its factor."""
    total = ""
    for index, source in enumerate(inputs):
        factor = node.arrays[f"factor_{index}"][node.arrays["place"].long()]
        if bool((factor != 1).any()):
            constant = graph.constant(f"{out}_factor_{index}", factor, graph.kind)
            source = graph.add("Mul", [source, constant], f"{out}_times_{index}")
        total = graph.add("Add", [total, source], f"{out}_total_{index}") if total else source
    return total


Writer = Callable[[Graph, Node, list[str], str], object]
ALIKE: dict[str, Writer] = {
    "gather": _gather,
    "reshape": _reshape,
    "max": _reduce,
    "sum": _reduce,
    "scale": _scale,
}
"""What is written in the same way for whole numbers of any kind."""


def build(form: IntegerForm, kind: Any, writers: Mapping[str, Writer]) -> Graph:
    """A graph of all nodes; ``writers`` for those that are not in `ALIKE`."""
    graph = Graph(form, kind)
    for node in form.nodes:
        inputs, out = names_of(form, node)
        {**ALIKE, **writers}[node.op](graph, node, inputs, out)
    return graph


def store(model: Any, path: Path) -> None:
    """Write a model, looked through by the checker where it knows all operators."""
    import onnx

    if len(model.opset_import) == 1:  # the checker knows no operators of QONNX
        onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
