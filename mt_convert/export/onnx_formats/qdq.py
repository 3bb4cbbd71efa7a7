"""ONNX files for onnxruntime: the float network as it is, and the quantized one with QDQ nodes.

`torch.onnx.export` writes both. Quantizers become QuantizeLinear, Clip, DequantizeLinear with the
quantized network's own steps and levels (8-bit zero points: onnxruntime has no kernels of fewer
bits), weights int8 with DequantizeLinear, batch norms folded into the weights' steps, exactly.
"""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...errors import Fault, UnsupportedLayerError
from ...graph.nodes import WEIGHTED, fold_batch_norm_, layer_nodes, layer_of, unused_name
from ...neurons.ladder import has_learned_gaps
from ...neurons.layer import MTNeuron
from ...quantization.quantize import QuantizedModel
from ...spiking.convert import convert
from ...spiking.model import SpikingModel
from ...spiking.presentation import Encoder
from ...spiking.weight_grid import weight_step

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_BYTE = 255


def missing() -> str | None:
    """Which packages are not installed, with what to do; None where all are.

    Example:
        >>> missing() is None or missing().endswith("onnxscript")
        True
    """
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if not absent:
        return None
    return f"not installed: {', '.join(absent)}; pip install {' '.join(PACKAGES)}"


def export_onnx(network: nn.Module, images: Tensor, *, any_batch: bool = False) -> bytes:
    """A network as an ONNX file for batches of the size of ``images``, or of any size."""
    shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
    noise = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(noise), redirect_stderr(noise):
        warnings.simplefilter("ignore")
        table = _translations() if _holds_levels(network) else None
        program: Any = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            verbose=False,
            custom_translation_table=table,
            dynamic_shapes=shapes,
        )
    content: bytes = program.model_proto.SerializeToString()
    return content


def qdq_form(
    network: QuantizedModel | SpikingModel, images: Tensor, *, quantize_sums: bool
) -> fx.GraphModule:
    """A quantized network, or what a converted one stands for, ready for `export_onnx`.

    ``quantize_sums`` also puts 8-bit quantizers, ranged on ``images``, behind the weighted layers
    that no quantizer follows, as onnxruntime's own quantization does: then it computes them in
    integers too, and the function is no longer quite the same.

    Raises:
        UnsupportedLayerError: learned thresholds or more levels than 8 bits hold.
    """
    snn = convert(network) if isinstance(network, QuantizedModel) else network
    layers = copy.deepcopy(snn.layers).cpu()
    for _, layer in layer_nodes(layers, WEIGHTED):
        if (step := weight_step(layer)) is not None:
            layer.register_buffer("grid", torch.round(layer.weight.detach() / step))
    fold_batch_norm_(layers)
    if quantize_sums:
        _quantize_sums_(layers, images)
    faults: list[Fault] = []
    for node, layer in list(layer_nodes(layers, (Encoder, MTNeuron, *WEIGHTED))):
        if isinstance(layer, WEIGHTED):
            substitute: nn.Module = _Weighted(layer) if hasattr(layer, "grid") else layer
        else:
            substitute, fault = _quantizer(str(node.target), layer)
            faults += [fault] if fault else []
        layers.set_submodule(str(node.target), substitute)
    if faults:
        raise UnsupportedLayerError("onnxruntime has no kernels for these quantizers", faults)
    layers.recompile()
    return layers.eval()


class _Levels(nn.Module):
    """step * clamp(round(x / step), low, high)."""

    def __init__(self, step: float, low: int, high: int) -> None:
        super().__init__()
        self.step, self.low, self.high = step, low, high

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _operators()[0](x, self.step, self.low, self.high)
        return output


class _Weighted(nn.Module):
    """A convolution or linear on weights held as int8, a step for each output channel."""

    grid: Tensor
    step: Tensor
    zero: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        grid, folded = layer.grid, layer.weight.detach()
        flat, wide = grid.flatten(1), folded.flatten(1)
        step = (flat * wide).sum(1) / flat.square().sum(1).clamp(min=1)  # exact: wide = step * flat
        sign = torch.where(step < 0, -1.0, 1.0)
        sign_of_row = sign.reshape(-1, *[1] * (grid.dim() - 1))
        self.register_buffer("grid", (grid * sign_of_row).to(torch.int8))
        self.register_buffer("step", torch.where(step == 0, 1.0, step.abs()))
        self.register_buffer("zero", torch.zeros(len(grid), dtype=torch.int8))
        self.layer = layer
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = _operators()[1](self.grid, self.step, self.zero)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.bias)
        output: Tensor = self.layer._conv_forward(x, weight, self.bias)
        return output


def _quantizer(name: str, layer: Any) -> tuple[nn.Module, Fault | None]:
    """What stands for an encoder or a layer of neurons; what speaks against it."""
    if isinstance(layer, Encoder):
        return _Levels(float(layer.scale), *layer.level_bounds), None
    low, high = (int(bound) for bound in layer.spec.limits)
    fault = None
    if layer.table is not None:
        what = "rounds half up" if layer.formula.only_clips else "stands for a function"
        fault = Fault(name, what, "QDQ nodes round half to even, and compute no function")
    elif has_learned_gaps(layer.spec.ladder):
        fault = Fault(name, "learned thresholds", "QDQ nodes have equal steps")
    elif layer.offset is not None or layer.gain is not None:
        hint = "QDQ nodes have the quantizer's steps: convert without calibration"
        fault = Fault(name, "was calibrated after conversion", hint)
    elif high - low > _BYTE:
        fault = Fault(name, f"{high - low + 1} levels", "8 bits hold 256")
    return _Levels(float(layer.delta), low, high), fault


@torch.no_grad()
def _quantize_sums_(layers: fx.GraphModule, images: Tensor) -> None:
    """8-bit quantizers behind weighted layers that none follows, the read-out excepted."""
    open_ended = [
        node
        for node, _ in layer_nodes(layers, WEIGHTED)
        if any(user.op != "output" for user in node.users)
        and not all(isinstance(layer_of(layers, user), MTNeuron) for user in node.users)
    ]
    seen = _Ranges(layers, open_ended)
    seen.run(images)
    for node in open_ended:
        name = unused_name(layers, f"{str(node.target).replace('.', '_')}_sum")
        layers.add_submodule(name, _Levels(max(seen.largest[node], 1e-12) / 127, -128, 127))
        with layers.graph.inserting_after(node):
            call = layers.graph.call_module(name, (node,))
        for user in [user for user in node.users if user is not call]:
            user.replace_input_with(node, call)


class _Ranges(fx.Interpreter):
    """Runs a converted network once, its neurons as quantizers; notes how large nodes get."""

    def __init__(self, layers: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(layers)
        self.largest = dict.fromkeys(nodes, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        layer = layer_of(self.module, n)  # type: ignore[arg-type]
        if isinstance(layer, MTNeuron):
            (value,), _ = self.fetch_args_kwargs_from_env(n)
            return torch.round(value / layer.delta).clamp(*layer.spec.limits) * layer.delta
        result = super().run_node(n)
        if n in self.largest:
            self.largest[n] = float(result.abs().max())
        return result


def _holds_levels(network: nn.Module) -> bool:
    return any(isinstance(layer, (_Levels, _Weighted)) for layer in network.modules())


@cache
def _operators() -> tuple[Any, Any]:
    """Two operators that export as QDQ nodes; defined on first use."""

    @torch.library.custom_op("mt_convert_bench::levels", mutates_args=())
    def levels(x: Tensor, step: float, low: int, high: int) -> Tensor:
        return torch.round(x / step).clamp(low, high) * step

    @torch.library.custom_op("mt_convert_bench::weights", mutates_args=())
    def weights(grid: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        return grid.float() * step.reshape(-1, *[1] * (grid.dim() - 1))

    levels.register_fake(lambda x, step, low, high: torch.empty_like(x))
    weights.register_fake(lambda grid, step, zero: grid.new_empty(grid.shape, dtype=torch.float32))
    return levels, weights


def _translations() -> dict[Any, Any]:
    """The ONNX nodes of both operators."""
    from onnxscript import opset18 as op

    def levels(x: Any, step: float, low: int, high: int) -> Any:
        zero = _constant(op, -low, "uint8")
        scale = _constant(op, step, "float32")
        numbers = op.QuantizeLinear(x, scale, zero)
        if high - low < _BYTE:
            top = _constant(op, high - low, "uint8")
            numbers = op.Clip(numbers, _constant(op, 0, "uint8"), top)
        return op.DequantizeLinear(numbers, scale, zero)

    def weights(grid: Any, step: Any, zero: Any) -> Any:
        return op.DequantizeLinear(grid, step, zero, axis=0)

    _operators()
    space = torch.ops.mt_convert_bench
    return {space.levels.default: levels, space.weights.default: weights}


def _constant(op: Any, value: float, kind: str) -> Any:
    """A single number in an ONNX graph."""
    import numpy
    import onnx

    return op.Constant(value=onnx.numpy_helper.from_array(numpy.array(value, dtype=kind)))
