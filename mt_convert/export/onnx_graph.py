"""Whole numbers as a graph: `onnx` for onnxruntime, `qonnx` for QONNX's executor and FINN.

    onnx    int32 throughout. Products are ConvInteger and MatMulInteger of unsigned bytes, weights
            moved up by 128: products of signed bytes saturate at 16 bits on some processors. A
            level is a count of comparisons, or, of more thresholds than `MOST_COMPARED`, the
            written float32 formula.
    qonnx   float32 tensors that hold whole numbers below 2^24; neurons are MultiThreshold nodes

The batch is free in both. Values are called value_N, as in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, Fault
from .integer_form import INT32, IntegerForm, Node, Value, emitted_levels, formula_arrays

OPSET, IR_VERSION = 18, 10
MOST_COMPARED = 15
FLOAT32_WHOLE = 2**24
LARGEST_FILE = 2**31 - 1
QONNX_DOMAIN = "qonnx.custom_op.general"


def missing(*packages: str) -> str | None:
    """Which packages are not installed, with what to do.

    Example:
        >>> missing("numpy", "nopackage")
        'not installed: nopackage; pip install mt-convert[export]'
    """
    absent = [name for name in packages if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; pip install mt-convert[export]" if absent else None


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, form: IntegerForm) -> None:
        import onnx

        self.onnx: Any = onnx
        self.form = form
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._made: set[str] = set()

    def constant(self, name: str, numbers: Any, kind: Any) -> str:
        """An initializer."""
        if name not in self._made:
            self._made.add(name)
            array = numbers.numpy() if isinstance(numbers, Tensor) else np.asarray(numbers)
            array = np.ascontiguousarray(array.astype(kind)).reshape(array.shape)
            self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

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

    def model(self, opsets: dict[str, int], kind: str) -> Any:
        """The whole, as a model."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        form, last = self.form, self.form.nodes[-1]

        def tensor(name: str, kind: str, shape: tuple[int, ...]) -> Any:
            return helper.make_tensor_value_info(name, getattr(types, kind), ["batch", *shape])

        graph = helper.make_graph(
            self.nodes,
            "network",
            [tensor("image", "FLOAT", form.image_shape)],
            [tensor("logits", "FLOAT", form.values[last.inputs[0]].shape)],
            self.constants,
            value_info=[
                tensor(value_name(index), kind, value.shape) for index, value in form.values.items()
            ],
        )
        imports = [helper.make_opsetid(name, number) for name, number in opsets.items()]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="mt-convert"
        )


def value_name(index: int) -> str:
    """What a value is called in the graph."""
    return "image" if index == 0 else f"value_{index}"


def names_of(form: IntegerForm, node: Node) -> tuple[list[str], str]:
    """What a node reads and makes, by name."""
    out = "logits" if node is form.nodes[-1] else value_name(node.out)
    return [value_name(index) for index in node.inputs], out


# ------------------------------------------------------------------------------- what both share


def _encode(graph: _Graph, node: Node, inputs: list[str], out: str) -> str:
    """Levels of the image, in float32."""
    scale = graph.constant(f"{out}_scale", node.arrays["scale"], np.float32)
    low = graph.constant(f"{out}_low", node.settings["low"], np.float32)
    high = graph.constant(f"{out}_high", node.settings["high"], np.float32)
    steps = graph.add("Div", [inputs[0], scale], f"{out}_steps")
    return graph.add("Clip", [graph.add("Round", [steps], f"{out}_whole"), low, high], out)


def _formula(
    graph: _Graph, arrays: dict[str, Tensor], inputs: list[str], out: str, offset: Tensor | None
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


def _reshape(graph: _Graph, source: str, shape: tuple[int, ...] | list[int], out: str) -> str:
    size = graph.constant(f"{out}_shape", [0, *shape], np.int64)
    return graph.add("Reshape", [source, size], out)


def _gather(graph: _Graph, node: Node, inputs: list[str], out: str, kind: Any) -> None:
    """Entries of the inputs, flattened and joined behind a zero."""
    index = node.arrays["index"].long()
    flat = [
        _reshape(graph, source, [-1], f"{out}_flat_{place}") for place, source in enumerate(inputs)
    ]
    joined = flat[0] if len(flat) == 1 else graph.add("Concat", flat, f"{out}_joined", axis=1)
    if bool((index == 0).any()):
        amounts = graph.constant(f"{out}_amounts", [0, 1, 0, 0], np.int64)
        zero = graph.constant(f"{out}_zero", 0, kind)
        joined, index = graph.add("Pad", [joined, amounts, zero], f"{out}_padded"), index + 1
    places = graph.constant(f"{out}_places", index.flatten() - 1, np.int64)
    chosen = graph.add("Gather", [joined, places], f"{out}_chosen", axis=1)
    _reshape(graph, chosen, tuple(index.shape), out)


def _pads(form: IntegerForm, node: Node) -> list[int]:
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


def _window(form: IntegerForm, node: Node) -> dict[str, Any]:
    settings = node.settings
    return {
        "kernel_shape": settings["kernel"],
        "strides": settings["stride"],
        "dilations": settings["dilation"],
        "pads": _pads(form, node),
    }


def _pool(graph: _Graph, node: Node, source: str, out: str) -> str:
    """A pool on float32; sums as a convolution with ones."""
    window = _window(graph.form, node)
    if node.op == "max_pool":
        return graph.add("MaxPool", [source], out, **window)
    channels = graph.form.values[node.inputs[0]].shape[0]
    ones = np.ones((channels, 1, *node.settings["kernel"]))
    weight = graph.constant(f"{out}_ones", ones, np.float32)
    return graph.add("Conv", [source, weight], out, group=channels, **window)


def _sum_fits(form: IntegerForm, node: Node) -> bool:
    """Whether float32 holds all numbers that a node reads and makes."""
    values = [form.values[index] for index in (*node.inputs, node.out)]
    return all(max(-value.low, value.high) < FLOAT32_WHOLE for value in values)


def _furthest(form: IntegerForm, node: Node) -> float:
    """The largest sum of |products| of a weighted layer, whatever the order."""
    value = form.values[node.inputs[0]]
    weight = node.arrays["weight"].double().abs().flatten(1).sum(1)
    return float(weight.max()) * max(-value.low, value.high)


# ---------------------------------------------------------------------------------------- onnx


def _bytes(value: Value) -> bool:
    return value.high - min(value.low, 0) <= 255


def onnx_refused(form: IntegerForm) -> list[Fault]:
    """What onnxruntime has no exact kernels for."""
    faults = []
    for node in form.nodes:
        if node.op in ("conv", "linear") and not _bytes(form.values[node.inputs[0]]):
            if _furthest(form, node) >= FLOAT32_WHOLE:
                hint = "inputs beyond 8 bits and sums beyond 2^24: use fewer bits"
                faults.append(Fault(node.name, node.op, hint))
        elif node.op in ("max_pool", "sum_pool") and not _sum_fits(form, node):
            faults.append(Fault(node.name, node.op, "sums beyond 2^24: use fewer bits"))
    return faults


def write_onnx(form: IntegerForm, path: Path) -> None:
    """Write the graph for onnxruntime."""
    graph = _Graph(form)
    for node in form.nodes:
        inputs, out = names_of(form, node)
        if node.op == "encode":
            graph.cast(_encode(graph, node, inputs, f"{out}_levels"), "int32", out)
        elif node.op in ("conv", "linear"):
            _products(graph, node, inputs[0], out)
        elif node.op == "gather":
            _gather(graph, node, inputs, out, np.int32)
        elif node.op == "reshape":
            _reshape(graph, inputs[0], form.values[node.out].shape, out)
        elif node.op in ("max_pool", "sum_pool"):
            source = graph.cast(inputs[0], "float", f"{out}_float")
            graph.cast(_pool(graph, node, source, f"{out}_pooled"), "int32", out)
        elif node.op in ("max", "sum"):
            _reduce(graph, node, inputs[0], out)
        elif node.op == "scale":
            factor = graph.constant(f"{out}_factor", node.arrays["factor"], np.int32)
            graph.add("Mul", [inputs[0], factor], out)
        elif node.op == "fire":
            _count(graph, node, inputs, out)
        else:
            floats = [
                graph.cast(name, "float", f"{out}_float_{place}")
                for place, name in enumerate(inputs)
            ]
            _formula(graph, dict(node.arrays), floats, out, None)
    _store(graph.model({"": OPSET}, "INT32"), path)


def _reduce(graph: _Graph, node: Node, source: str, out: str) -> None:
    op = "ReduceMax" if node.op == "max" else "ReduceSum"
    axes = graph.constant(f"{out}_axes", node.settings["axes"], np.int64)
    reduced = graph.add(op, [source, axes], f"{out}_reduced", keepdims=0)
    _reshape(graph, reduced, graph.form.values[node.out].shape, out)


def _products(graph: _Graph, node: Node, source: str, out: str) -> None:
    """Sums of products of unsigned bytes, or, of wider levels, in float32."""
    value, weight = graph.form.values[node.inputs[0]], node.arrays["weight"].int()
    linear = node.op == "linear"
    settings = {} if linear else _window(graph.form, node) | {"group": node.settings["groups"]}
    weight = weight.T if linear else weight
    if not _bytes(value):
        constant = graph.constant(f"{out}_weight", weight, np.float32)
        floats = graph.cast(source, "float", f"{out}_float")
        op = "MatMul" if linear else "Conv"
        summed = graph.add(op, [floats, constant], f"{out}_summed", **settings)
        graph.cast(summed, "int32", out)
        return
    up = -min(value.low, 0)
    if up:
        source = graph.add(
            "Add", [source, graph.constant(f"{out}_up", up, np.int32)], f"{out}_raised"
        )
    names = [graph.cast(source, "uint8", f"{out}_bytes")]
    names.append(graph.constant(f"{out}_weight", weight + 128, np.uint8))
    names.append(graph.constant(f"{out}_zero", up, np.uint8))
    names.append(graph.constant(f"{out}_weight_zero", 128, np.uint8))
    graph.add("MatMulInteger" if linear else "ConvInteger", names, out, **settings)


def _count(graph: _Graph, node: Node, inputs: list[str], out: str) -> None:
    """Levels: comparisons of whole numbers, or the written formula."""
    arrays = node.arrays
    if "levels" in arrays or arrays["thresholds"].shape[1] > MOST_COMPARED:
        _levels_by_formula(graph, node, inputs, out)
        return
    total = _whole_sum(graph, node, inputs, out, np.int32)
    axis = graph.constant("last_axis", [-1], np.int64)
    wide = graph.add("Unsqueeze", [total, axis], f"{out}_wide")
    thresholds = arrays["thresholds"][arrays["place"].long()]
    constant = graph.constant(f"{out}_thresholds", thresholds, np.int32)
    reached = graph.add("GreaterOrEqual", [wide, constant], f"{out}_reached")
    ones = graph.cast(reached, "int32", f"{out}_ones")
    first = node.settings["first"]
    counted = graph.add("ReduceSum", [ones, axis], f"{out}_count" if first else out, keepdims=0)
    if first:
        graph.add("Add", [counted, graph.constant(f"{out}_first", first, np.int32)], out)


def _whole_sum(graph: _Graph, node: Node, inputs: list[str], out: str, kind: Any) -> str:
    """The sum that is compared: each input times its factor."""
    total = ""
    for index, source in enumerate(inputs):
        factor = node.arrays[f"factor_{index}"][node.arrays["place"].long()]
        if bool((factor != 1).any()):
            constant = graph.constant(f"{out}_factor_{index}", factor, kind)
            source = graph.add("Mul", [source, constant], f"{out}_times_{index}")
        total = graph.add("Add", [total, source], f"{out}_total_{index}") if total else source
    return total


def _levels_by_formula(graph: _Graph, node: Node, inputs: list[str], out: str) -> None:
    """clamp(round(formula)), and which level that is."""
    item = graph.form.sources[node.out]
    floats = [
        graph.cast(name, "float", f"{out}_float_{place}") for place, name in enumerate(inputs)
    ]
    offset = None if item.offset is None else item.offset.detach().float()
    drive = _formula(graph, formula_arrays(item.input), floats, f"{out}_drive", offset)
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


# --------------------------------------------------------------------------------------- qonnx


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
        return _furthest(form, node) >= FLOAT32_WHOLE
    if node.op == "fire":
        return _reach(form, node) >= FLOAT32_WHOLE
    return node.op not in ("encode", "read_out") and not _sum_fits(form, node)


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
    graph = _Graph(form)
    for node in form.nodes:
        inputs, out = names_of(form, node)
        if node.op == "encode":
            _encode(graph, node, inputs, out)
        elif node.op in ("conv", "linear"):
            linear = node.op == "linear"
            weight = node.arrays["weight"].T if linear else node.arrays["weight"]
            names = [inputs[0], graph.constant(f"{out}_weight", weight, np.float32)]
            settings = {} if linear else _window(form, node) | {"group": node.settings["groups"]}
            graph.add("MatMul" if linear else "Conv", names, out, **settings)
        elif node.op == "gather":
            _gather(graph, node, inputs, out, np.float32)
        elif node.op == "reshape":
            _reshape(graph, inputs[0], form.values[node.out].shape, out)
        elif node.op in ("max_pool", "sum_pool"):
            _pool(graph, node, inputs[0], out)
        elif node.op in ("max", "sum"):
            _reduce(graph, node, inputs[0], out)
        elif node.op == "scale":
            factor = graph.constant(f"{out}_factor", node.arrays["factor"], np.float32)
            graph.add("Mul", [inputs[0], factor], out)
        elif node.op == "fire":
            _multi_threshold(graph, node, inputs, out)
        else:
            _formula(graph, dict(node.arrays), inputs, out, None)
    model = graph.model({"": OPSET, QONNX_DOMAIN: 1}, "FLOAT")
    _annotate(model, form)
    _store(model, path)


def _annotate(model: Any, form: IntegerForm) -> None:
    """The types of whole numbers, as QONNX keeps them beside tensors."""
    from onnx.numpy_helper import to_array

    ends = {value_name(index): value for index, value in form.values.items()}
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


def _multi_threshold(graph: _Graph, node: Node, inputs: list[str], out: str) -> None:
    """One MultiThreshold node, channels on axis 1; other rows of thresholds are laid out so."""
    shape, place = graph.form.values[node.out].shape, node.arrays["place"].long()
    value = graph.form.values[node.out]
    total = _whole_sum(graph, node, inputs, out, np.float32)
    by_channel = place.numel() == place.shape[0] if place.dim() else False
    rows = place.expand(shape[0], *place.shape[1:]).flatten() if by_channel else None
    laid = shape if by_channel else (value_size(shape),)
    if by_channel and len(shape) not in (1, 3):
        laid = (shape[0], value_size(shape[1:]), 1)
    if laid != shape:
        total = _reshape(graph, total, laid, f"{out}_laid")
    thresholds = node.arrays["thresholds"][place.expand(shape).flatten() if rows is None else rows]
    made = graph.add(
        "MultiThreshold",
        [total, graph.constant(f"{out}_thresholds", thresholds, np.float32)],
        out if laid == shape else f"{out}_levels",
        QONNX_DOMAIN,
        out_dtype=type_name(value),
        out_scale=1.0,
        out_bias=float(node.settings["first"]),
        data_layout="NCHW" if len(laid) == 3 else "NC",
    )
    if laid != shape:
        _reshape(graph, made, shape, out)


def value_size(shape: tuple[int, ...]) -> int:
    """How many numbers a shape has.

    Example:
        >>> value_size((2, 3)), value_size(())
        (6, 1)
    """
    return math.prod(shape)


# ------------------------------------------------------------------------------------- running


def _store(model: Any, path: Path) -> None:
    import onnx

    if len(model.opset_import) == 1:  # the checker knows no operators of QONNX
        onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def sizes(path: Path) -> dict[str, int]:
    """Bytes of the file."""
    return {"bytes": path.stat().st_size}


class GraphRuntime:
    """A written graph, whole and cut into single nodes; ``start`` runs a model on named inputs.

    Raises:
        CheckpointError: the file is missing, damaged, too large, refers to other files, or stops.
    """

    def __init__(self, path: Path, form: IntegerForm, start: Callable[..., Any]) -> None:
        self.path, self.form = path, form
        self.model = read_graph(path)
        self._start = start(self._guard)
        self._parts: dict[int, Any] = {}
        shown = [node for node in form.nodes if node.op == "fire"]
        self._shown = {node.out: names_of(form, node)[1] for node in (*shown, form.nodes[-1])}
        self._whole: Any = None

    @property
    def version(self) -> str:
        """What runs it."""
        return str(self._start.version)

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Levels of all neurons and the logits."""
        if self._whole is None:
            self._whole = self._start(self._cut(["image"], list(self._shown.values())))
        found = self._whole({"image": images.astype(np.float32)})
        return dict(zip(self._shown, found, strict=True))

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """The part of the graph between the inputs of a node and what it makes."""
        names, out = names_of(self.form, node)
        if node.out not in self._parts:
            self._parts[node.out] = self._start(self._cut(names, [out]))
        kind = np.float32 if node.op == "encode" else self._start.kind(self.model)
        given = {name: array.astype(kind) for name, array in zip(names, inputs, strict=True)}
        (found,) = self._parts[node.out](given)
        result: np.ndarray = found
        return result

    def _cut(self, inputs: list[str], outputs: list[str]) -> Any:
        """A model from some values to others."""
        import onnx

        def cut() -> Any:
            whole = type(self.model)()
            whole.CopyFrom(self.model)
            del whole.graph.quantization_annotation[:]  # onnx cuts no graph that has some
            part = onnx.utils.Extractor(whole).extract_model(inputs, outputs)
            ends = {item.name for item in (*part.graph.input, *part.graph.output)}
            inner = [item for item in part.graph.value_info if item.name not in ends]
            del part.graph.value_info[:]
            part.graph.value_info.extend(inner)
            return part

        return self._guard(cut)

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (KeyboardInterrupt, SystemExit, CheckpointError):
            raise
        except BaseException as error:  # runtimes raise types of their own
            why = f"{type(error).__name__}: {str(error)[:200]}"
            raise CheckpointError(f"{self.path} does not run ({why}): write it again") from error


def read_graph(path: Path) -> Any:
    """A graph from a file, looked through before anything is run.

    Raises:
        CheckpointError: missing, damaged, too large, or weights lie in other files.
    """
    import onnx

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path} has more than 2^31 bytes: it is no network of ours")
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except Exception as error:
        hint = "it is damaged or of another kind; write it again"
        raise CheckpointError(f"{path} is no ONNX file: {hint}") from error
    outside = any(item.data_location or item.external_data for item in model.graph.initializer)
    nested = any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)
    known = {"", QONNX_DOMAIN} >= {node.domain for node in model.graph.node}
    if outside or nested or not known or not model.graph.node or len(model.functions):
        raise CheckpointError(f"{path} is no ONNX file of ours: write it again")
    return model


class _OnnxRuntime:
    """Starts models in onnxruntime, as it comes."""

    def __init__(self, guard: Callable[..., Any]) -> None:
        self._guard = guard
        self.version = f"onnxruntime {version('onnxruntime')}"

    def __call__(self, model: Any) -> Callable[[dict[str, np.ndarray]], Any]:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = self._guard(
            lambda: onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        )
        return lambda given: self._guard(lambda: session.run(None, given))

    def kind(self, model: Any) -> Any:
        """The type of values between nodes."""
        return np.int32


class _Qonnx:
    """Starts models in QONNX's own executor."""

    def __init__(self, guard: Callable[..., Any]) -> None:
        self._guard = guard
        self.version = f"qonnx {version('qonnx')}"

    def __call__(self, model: Any) -> Callable[[dict[str, np.ndarray]], Any]:
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes

        outputs = [item.name for item in model.graph.output]
        by_batch: dict[int, Any] = {}

        def run(given: dict[str, np.ndarray]) -> list[np.ndarray]:
            batch = len(next(iter(given.values())))
            if batch not in by_batch:
                by_batch[batch] = ModelWrapper(with_batch(model, batch)).transform(InferShapes())
            found = execute_onnx(by_batch[batch], given)
            return [found[name] for name in outputs]

        return lambda given: self._guard(lambda: run(given))

    def kind(self, model: Any) -> Any:
        """The type of values between nodes."""
        return np.float32


def with_batch(model: Any, batch: int) -> Any:
    """The same model for one size of batch, which QONNX's executor wants."""
    fixed = type(model)()
    fixed.CopyFrom(model)
    for group in (fixed.graph.input, fixed.graph.output, fixed.graph.value_info):
        for item in group:
            item.type.tensor_type.shape.dim[0].dim_value = batch
    return fixed


def open_onnx(path: Path, form: IntegerForm) -> GraphRuntime:
    """An `onnx` file, to be run."""
    return GraphRuntime(path, form, _OnnxRuntime)


def open_qonnx(path: Path, form: IntegerForm) -> GraphRuntime:
    """A `qonnx` file, to be run."""
    return GraphRuntime(path, form, _Qonnx)
