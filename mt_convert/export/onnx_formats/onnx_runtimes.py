"""What runs the files of `onnx` and `qonnx`, whole and node by node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import CheckpointError
from ..forms.nodes import IntegerForm, Node
from ..verdict import run_foreign
from .onnx_graph import names_of
from .qonnx_thresholds import QONNX_DOMAIN

LARGEST_FILE = 2**31 - 1


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
        self._guard = partial(run_foreign, path)
        self.model = read_graph(path)
        self._start = start(self._guard)
        self._parts: dict[int, Any] = {}
        shown = [node for node in form.nodes[:-1] if node.out in form.levels]
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
        given = {}
        for name, index, array in zip(names, node.inputs, inputs, strict=True):
            is_real = index == 0 or self.form.values[index].real
            given[name] = array.astype(np.float32 if is_real else self._start.kind)
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
    """Starts models in onnxruntime, as it comes. ``kind``: of values between nodes."""

    kind = np.int32

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


class _Qonnx:
    """Starts models in QONNX's own executor. ``kind``: of values between nodes."""

    kind = np.float32

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
