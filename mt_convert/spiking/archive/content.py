"""What a stored description may ask for: looked at before memory is taken for any layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import CheckpointError, Fault
from ...graph.nodes import PLAIN, WEIGHTED, layer_of
from ...graph.serialization import plain_layer_from_json
from ...quantization.activations.formula import size_of
from ...quantization.activations.quant_act import QuantAct
from ...system.plain_data import as_type
from ..model import SpikingModel
from ..shapes import ShapeRun

LARGEST_IMAGE = 2**26  # numbers in an image
LARGEST_VALUE = 2**30  # numbers that one image may become within the network
LARGEST_NUMBER = 2**53
_SPARE = 4096  # numbers that a layer may have beside its stored tensors: codewords, bounds
_MOST_BITS = {"bits": 8, "weight_bits": 8, "codeword_bits": 9}
_SHAPES = ("offset", "gain", "weight_scale")


@dataclass(frozen=True)
class _Node:
    name: str
    op: str
    target: str
    args: dict[str, Any]
    kwargs: dict[str, Any]
    path: str


@dataclass(frozen=True)
class _Quantizer:
    clip: tuple[float | None, float | None]
    encodes_input: bool
    below: int | None = None


@dataclass(frozen=True)
class _Function:
    text: str
    channels: int
    axis: int
    graph: list[_Node]
    tensors: dict[str, list[str | int]]
    trained: list[str]
    table: list[int] | None = None


@dataclass(frozen=True)
class _Content:
    kind: str
    layers: dict[str, dict[str, Any]]
    loose: dict[str, list[int]]
    graph: list[_Node]
    image_shape: list[int]
    trained: list[str] | None = None
    frozen: list[str] | None = None
    tied: list[list[str]] | None = None
    warnings: list[str] | None = None
    float_agreement: list[float | int | None] | None = None
    functions: list[list[str]] | None = None
    unrounded_agreement: float | None = None
    calibrated_T: int | None = None
    data_settings: dict[str, Any] | None = None


def check_content(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a description of other types, or one whose layers are larger than their tensors.

    Raises:
        CheckpointError: all layers at fault at once.
    """
    described: _Content = as_type(_Content, content)
    shape = described.image_shape
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > LARGEST_IMAGE:
        raise CheckpointError(f"image_shape: {shape} is no shape of an image")
    if len(described.graph) < 2:
        raise CheckpointError("graph: has no layers")
    faults = [
        fault
        for name, config in described.layers.items()
        for fault in _layer_faults(name, config, tensors)
    ]
    faults += [Fault(name, "is not stored", "") for name in described.loose if name not in tensors]
    if faults:
        raise CheckpointError(f"{len(faults)} layers do not fit their tensors", faults[:20])


def check_network(layers: fx.GraphModule) -> None:
    """Refuse a network that no image passes through, from shapes alone.

    Raises:
        CheckpointError: an operator that does not take what it gets, steps that are not above 0,
            numbers that are not finite, or values that no memory could hold.
    """
    for name, tensor in (*layers.named_parameters(), *layers.named_buffers()):
        if not tensor.is_floating_point():
            continue
        owner = layers.get_submodule(name.rpartition(".")[0])
        if type(owner) in (nn.Module, type(layers)) and not bool(tensor.detach().isnan().any()):
            continue  # a constant of the graph may be infinite, as a mask's in front of softmax
        if not bool(tensor.detach().isfinite().all()):
            raise CheckpointError(f"{name}: holds NaN or infinity")
    run = _Bounded(layers.eval())  # nothing of it may change
    run.infer(2)
    for node, shape in run.shapes.items():
        if math.prod(shape) > 2 * LARGEST_VALUE:
            raise CheckpointError(f"{node.name}: would have {math.prod(shape)} numbers")
    read_out = run.read_out
    if not isinstance(read_out, torch.Size) or len(read_out) < 2 or read_out[0] != 2:
        raise CheckpointError(f"the read-out has the shape {read_out}, not [images, classes]")


def check_steps(snn: SpikingModel) -> None:
    """Refuse neurons whose step is not above 0, or whose tensors do not fit what they are fed."""
    for name, neuron in snn.neurons():
        if not bool((neuron.delta.detach() > 0).all()):
            raise CheckpointError(f"{name}: its step is not above 0")


class _Bounded(ShapeRun):
    """Shapes of a quantized or a spiking network; no value grows beyond what memory holds."""

    read_out: Any = None

    def run_node(self, node: fx.Node) -> Any:
        layer = layer_of(self.layers, node)
        if isinstance(layer, QuantAct):
            value = self.fetch_args_kwargs_from_env(node)[0][0]
            self.shapes[node] = value.shape
            return value
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.numel() > 2 * LARGEST_VALUE:
            raise CheckpointError(f"{node.name}: would have {value.numel()} numbers")
        if node.op == "output":
            self.read_out = value.shape if isinstance(value, Tensor) else type(value).__name__
        return value

    def compute(self, node: fx.Node) -> Any:
        layer = layer_of(self.layers, node)
        kind: Any
        for kind in WEIGHTED:
            if isinstance(layer, kind):
                args, kwargs = self.fetch_args_kwargs_from_env(node)
                return kind.forward(layer, *args, **kwargs)  # not the subclass's: shapes alone
        return super().compute(node)


def _layer_faults(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[Fault]:
    """What a layer asks for that its tensors do not hold."""
    for key, value in _numbers(config):
        if not abs(value) <= LARGEST_NUMBER:
            yield Fault(f"{name}.{key}", str(value)[:40], "is beyond all numbers of ours")
            return
    for key, most in _MOST_BITS.items():
        bits = config.get(key, 0)
        if not isinstance(bits, int) or not 0 <= bits <= most:
            yield Fault(f"{name}.{key}", repr(bits)[:40], f"allowed: up to {most}")
            return
    if config.get("type") == "QuantAct":
        as_type(_Quantizer, config)
    if "function" in config:
        as_type(_Function, config["function"])
    if config.get("type") == "ConvByStep":
        for half in ("early", "late"):
            inner = as_type(dict[str, Any], config.get(half))
            yield from _layer_faults(f"{name}.{half}", inner, tensors)
        return
    held = sum(item.numel() for key, item in tensors.items() if key.startswith(f"{name}."))
    asked = _size(config)
    if (function := config.get("function")) is not None:
        asked += size_of(as_type(dict[str, Any], function))
    if asked > held + _SPARE:
        yield Fault(name, f"asks for {asked} numbers", f"its tensors hold {held}")


def _size(config: Mapping[str, Any]) -> int:
    """How many numbers a layer has, built without memory."""
    size = 0
    for key in _SHAPES:
        if config.get(key) is not None:
            shape = as_type(list[int], config[key])
            if any(axis < 0 for axis in shape):
                raise CheckpointError(f"{key}: {shape} is no shape")
            size += math.prod(shape)
    known = {item.__name__ for item in PLAIN}
    if config.get("type") not in known:
        return size
    own = {key: value for key, value in config.items() if key in _FIELDS}
    with torch.device("meta"):
        layer = plain_layer_from_json(own)
    return size + sum(item.numel() for item in layer.state_dict().values())


_FIELDS = (
    *("type", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("groups", "bias", "in_features", "out_features", "num_features", "eps", "momentum"),
    *("affine", "p", "min_val", "max_val"),
)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of plain data, under dotted names."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int | float):
        yield key, value
