"""Quantization-aware networks on Brevitas: the only file that imports it.

`quantize` traces a network, folds or keeps its batch norms, swaps convolutions and linears for
Brevitas layers, puts a quantizer where a multi-threshold neuron will stand, and calibrates. The
result trains like any module. QuantTensors never leave a layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Brevitas warns about torch's own renamings on import
    from brevitas import nn as qnn
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.quant import (
        Int8ActPerTensorFixedPoint,
        Int8ActPerTensorFloat,
        Int8ActPerTensorFloatMSE,
        Int8WeightPerChannelFixedPointMSE,
        Int8WeightPerChannelFloat,
        Int8WeightPerChannelFloatMSE,
        Uint8ActPerTensorFixedPoint,
        Uint8ActPerTensorFloat,
        Uint8ActPerTensorFloatMSE,
    )

from .errors import DataError, Fault, SpecError, UnsupportedLayerError
from .graph import WEIGHTED, check_images, fold_batch_norm_, layer_nodes, source_of, unused_name
from .graph_json import plain_layer_from_json, plain_layer_to_json
from .quant_spec import BatchNorm, QuantSpec, Scale
from .rules import DEFAULT_RULES, Carries, Kind, Rule, carried, reaches_output, unknown_operators
from .trace import trace

CALIBRATION_BATCH = 128
FEW_BITS = 3


# ---------------------------------------------------------------------------------------- layers


class QuantAct(nn.Module):
    """A quantized activation: s * clamp(round(x / s), lo, hi), half to even (DESIGN, section 2).

    ``clip`` holds the bounds of the function it replaces (0 and 6 for ReLU6), applied first.
    """

    def __init__(
        self, bits: int, clip: tuple[float, float], scale: Scale, encodes_input: bool
    ) -> None:
        super().__init__()
        self.bits, self.clip, self.kind, self.encodes_input = bits, clip, scale, encodes_input
        self.quant = qnn.QuantIdentity(act_quant=_act_quantizer(bits, self.signed, scale))

    @property
    def signed(self) -> bool:
        """Whether levels below 0 exist."""
        return self.clip[0] < 0

    @property
    def scale(self) -> Tensor:
        """The step s, a tensor of no dimensions."""
        return self.quant.act_quant.scale().detach().reshape(())

    @property
    def level_bounds(self) -> tuple[int, int]:
        """Smallest and largest level that can occur, the clip of ReLU6 or Hardtanh included."""
        high = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
        low = -high if self.signed else 0
        step = self.scale
        clipped = [torch.round(torch.tensor(bound, dtype=step.dtype) / step) for bound in self.clip]
        return max(low, int(clipped[0].clamp(min=low))), min(high, int(clipped[1].clamp(max=high)))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.clip
        if low == 0 and high == float("inf"):
            x = F.relu(x)
        elif (low, high) != (float("-inf"), float("inf")):
            x = F.hardtanh(x, low, high)
        return self.quant(x)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, clip={self.clip}, scale={self.kind}"


def _act_quantizer(bits: int, signed: bool, scale: Scale) -> type:
    """Per tensor. The step starts from a high percentile, and where levels are few (3 bits and
    below) from the least squared error; training moves it."""
    few = bits <= FEW_BITS
    if scale is Scale.POWER_OF_TWO:
        base: type = Int8ActPerTensorFixedPoint if signed else Uint8ActPerTensorFixedPoint
    elif signed:
        base = Int8ActPerTensorFloatMSE if few else Int8ActPerTensorFloat
    else:
        base = Uint8ActPerTensorFloatMSE if few else Uint8ActPerTensorFloat
    settings = {"bit_width": bits, "narrow_range": True} if signed else {"bit_width": bits}
    return type("Quantizer", (base,), settings)


def _weight_quantizer(bits: int, scale: Scale) -> type:
    """Per output channel, symmetric. From 5 bits up the step follows the largest weight; below,
    that wastes levels, so it starts from the least squared error and is trained."""
    if scale is Scale.POWER_OF_TWO:
        base: type = Int8WeightPerChannelFixedPointMSE
    else:
        base = Int8WeightPerChannelFloat if bits > 4 else Int8WeightPerChannelFloatMSE
    return type("Quantizer", (base,), {"bit_width": bits})


def _quantized_weighted(layer: nn.Module, bits: int, scale: Scale) -> nn.Module:
    """The Brevitas layer of a convolution or linear, with the same weights."""
    config = plain_layer_to_json(layer)
    kind = getattr(qnn, "Quant" + config.pop("type"))
    made = kind(**config, weight_quant=_weight_quantizer(bits, scale), bias_quant=None)
    made.weight.data.copy_(layer.weight.data)
    if layer.bias is not None:
        made.bias.data.copy_(layer.bias.data)
    made.weight_bits, made.weight_scale_kind = bits, scale
    return made.to(layer.weight.device)


def quant_layer_to_json(layer: nn.Module) -> dict[str, Any]:
    """A layer of a quantized network as plain data; its tensors are stored apart."""
    if isinstance(layer, QuantAct):
        clip = [None if abs(bound) == float("inf") else bound for bound in layer.clip]
        return {
            "type": "QuantAct",
            "bits": layer.bits,
            "clip": clip,
            "scale": str(layer.kind),
            "encodes_input": layer.encodes_input,
        }
    if isinstance(layer, WEIGHTED):
        plain = plain_layer_to_json(layer)
        return {**plain, "weight_bits": layer.weight_bits, "scale": str(layer.weight_scale_kind)}
    return plain_layer_to_json(layer)


def quant_layer_from_json(config: Mapping[str, Any]) -> nn.Module:
    """The layer that `quant_layer_to_json` described, its tensors not yet filled in."""
    config = dict(config)
    if config["type"] == "QuantAct":
        low, high = config["clip"]
        clip = (float("-inf") if low is None else low, float("inf") if high is None else high)
        return QuantAct(config["bits"], clip, Scale(config["scale"]), config["encodes_input"])
    if "weight_bits" in config:
        bits, scale = config.pop("weight_bits"), Scale(config.pop("scale"))
        return _quantized_weighted(plain_layer_from_json(config), bits, scale)
    return plain_layer_from_json(config)


# --------------------------------------------------------------------------------------- network


class QuantizedModel(nn.Module):
    """A quantized network: ``layers`` is its graph, ``spec`` says how it was quantized.

    ``image_shape`` is the (channels, height, width) that it was traced for.

    Shapes:
        forward takes images [batch, channels, height, width], returns logits [batch, classes].
    Raises:
        DataError: images of another shape, or with NaN.
    """

    def __init__(self, layers: fx.GraphModule, spec: QuantSpec) -> None:
        super().__init__()
        self.layers, self.spec = layers, spec
        self.image_shape: tuple[int, ...] = tuple(layers.image_shape)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        return self.layers(images)


def quantize(
    ann: nn.Module,
    spec: QuantSpec,
    *,
    calibration: Tensor,
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
) -> QuantizedModel:
    """A calibrated, trainable quantized copy of ``ann``, in eval mode; ``ann`` is untouched.

    Every ReLU, ReLU6 or Hardtanh (module, functional or re-used) gets a quantizer of its own; a
    weighted layer that no activation feeds gets a signed quantizer in front.

    Shapes:
        calibration: [images, channels, height, width], normalised as in training.
    Raises:
        UnsupportedLayerError: every operator that cannot be quantized, with what to do.
        SpecError: an override that matches no layer.
        DataError: calibration images with NaN.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(act_bits=2), calibration=torch.randn(8, 1, 4, 4))
        >>> [type(layer).__name__ for _, layer in layer_nodes(qann.layers, nn.Module)]
        ['QuantAct', 'QuantConv2d', 'QuantAct', 'QuantLinear']
    """
    check_images(calibration, tuple(calibration.shape[1:]))
    if not len(calibration):
        raise DataError("no calibration images: pass some tens of the training images")
    layers = trace(ann, calibration)
    faults = unknown_operators(layers, rules) + _odd_clamps(layers)
    if faults:
        raise UnsupportedLayerError(
            f"{len(faults)} operators of {type(ann).__name__} cannot be quantized", faults
        )
    if spec.batch_norm is BatchNorm.FOLD:
        fold_batch_norm_(layers)
    _quantize_activations_(layers, spec)
    _quantize_inputs_(layers, spec, rules)
    _quantize_weights_(layers, spec, rules)
    _check_overrides(layers, spec)
    layers.graph.lint()
    layers.recompile()
    qann = QuantizedModel(layers, spec)
    calibrate_(qann, calibration)
    return qann


def _odd_clamps(layers: fx.GraphModule) -> list[Fault]:
    """One fault for each clamp whose bounds do not enclose 0, what a neuron at rest emits."""
    return [
        Fault(
            str(node.target),
            f"clamp to [{layer.min_val}, {layer.max_val}]",
            "the bounds of an activation must enclose 0",
        )
        for node, layer in layer_nodes(layers, nn.Hardtanh)
        if not layer.min_val <= 0 < layer.max_val
    ]


def calibrate_(qann: QuantizedModel, images: Tensor) -> None:
    """Set the steps of all activation quantizers from the activations of ``images``, in place.

    Leaves the model in eval mode, its steps trainable (uncalibrated, Brevitas would use 1/L).
    """
    with torch.no_grad(), calibration_mode(qann):
        for batch in images.split(CALIBRATION_BATCH):
            qann(batch)
    qann.eval()
    for _, layer in layer_nodes(qann.layers, WEIGHTED):
        quantized_weight(layer)  # a trained weight step takes its start on first use


def _quantize_activations_(layers: fx.GraphModule, spec: QuantSpec) -> None:
    """Each activation becomes a quantizer of the same name."""
    for node, layer in list(layer_nodes(layers, (nn.ReLU, nn.Hardtanh))):
        clip = (0.0, float("inf")) if isinstance(layer, nn.ReLU) else (layer.min_val, layer.max_val)
        name = str(node.target)
        bits = _bits(spec, name, "act_bits", spec.act_bits)
        layers.add_submodule(name, _quant_act(layers, bits, clip, spec, name))


def _quant_act(
    layers: fx.GraphModule, bits: int, clip: tuple[float, float], spec: QuantSpec, name: str
) -> QuantAct:
    """A quantizer on the device of the network; 1 bit cannot be signed."""
    if clip[0] < 0 and bits < 2:
        hint = "raise act_bits to 2, or give the layer its own bits under overrides"
        raise SpecError("1-bit activations cannot be signed", [Fault(name, "1 bit, signed", hint)])
    device = next((parameter.device for parameter in layers.parameters()), torch.device("cpu"))
    return QuantAct(bits, clip, spec.scale, encodes_input=False).to(device)


def _quantize_inputs_(layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule]) -> None:
    """A signed quantizer on the image, and before each weighted layer that no spikes feed."""
    rules = {**rules, QuantAct: Rule(Kind.NEURON)}
    unbounded = (float("-inf"), float("inf"))
    placeholder = next(node for node in layers.graph.nodes if node.op == "placeholder")
    if spec.input_bits is not None:
        image = _quant_act(layers, spec.input_bits, unbounded, spec, "input_quant")
        image.encodes_input = True
        _insert_(layers, placeholder, unused_name(layers, "input_quant"), image)
    for node, _ in list(layer_nodes(layers, WEIGHTED)):
        source = source_of(node)
        if carried(layers, rules)[source] is Carries.CURRENT:
            name = unused_name(layers, f"{node.target}_input")
            bits = _bits(spec, name, "act_bits", max(spec.act_bits, 2))
            _insert_(layers, source, name, _quant_act(layers, bits, unbounded, spec, name))


def _insert_(layers: fx.GraphModule, source: fx.Node, name: str, quantizer: QuantAct) -> None:
    """Put a quantizer behind ``source``; all that read ``source`` then read the quantizer."""
    layers.add_submodule(name, quantizer)
    users = [user for user in source.users if "sym_size" not in str(user.target)]
    with layers.graph.inserting_after(source):
        call = layers.graph.call_module(name, (source,))
    call.meta = {"path": name}
    for user in users:
        user.replace_input_with(source, call)


def _quantize_weights_(layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule]) -> None:
    """Each convolution and linear becomes a Brevitas layer; first and last have their own bits."""
    rules = {**rules, QuantAct: Rule(Kind.NEURON)}
    carries = carried(layers, rules)
    done: dict[str, tuple[nn.Module, int]] = {}
    for node, layer in list(layer_nodes(layers, WEIGHTED)):
        bits = spec.weight_bits
        if spec.first_bits is not None and carries[source_of(node)] is Carries.IMAGE:
            bits = spec.first_bits
        if spec.last_bits is not None and reaches_output(layers, node, rules):
            bits = spec.last_bits
        name = str(node.target)
        done.setdefault(name, (layer, _bits(spec, name, "weight_bits", bits)))
    for name, (layer, bits) in done.items():
        layers.add_submodule(name, _quantized_weighted(layer, bits, spec.scale))


def _bits(spec: QuantSpec, name: str, kind: str, default: int) -> int:
    """The bits of a layer: the last override that matches and names ``kind``, or the default."""
    for item in reversed(spec.overrides):
        value = getattr(item, kind)
        if value is not None and fnmatchcase(name, item.pattern):
            return value
    return default


def _check_overrides(layers: fx.GraphModule, spec: QuantSpec) -> None:
    """An override that matches nothing is a misspelt name."""
    names = [str(node.target) for node, _ in layer_nodes(layers, (*WEIGHTED, QuantAct))]
    faults = [
        Fault(
            item.pattern,
            "matches no layer",
            "layers: " + ", ".join(names[:12]) + (" …" if len(names) > 12 else ""),
        )
        for item in spec.overrides
        if not any(fnmatchcase(name, item.pattern) for name in names)
    ]
    if faults:
        raise SpecError(f"{len(faults)} overrides match no layer", faults)


def quantized_weight(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Value and step of a Brevitas layer's quantized weight.

    Shapes:
        value as the layer's weight; step [out, 1, …].
    """
    with torch.no_grad():
        weight = layer.quant_weight()  # type: ignore[operator]
        value, step = weight.value.detach().clone(), weight.scale.detach().clone()
    return value, step.reshape(-1, *[1] * (value.dim() - 1)).expand(
        value.shape[0], *step.shape[1:] or [1]
    ).clone()
