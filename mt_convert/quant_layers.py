"""Quantized layers on Brevitas: the only file that imports it. QuantTensors never leave a layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

from .graph_json import plain_layer_from_json, plain_layer_to_json
from .quant_spec import Scale

FEW_BITS = 3
SAMPLE = 2**14  # values of each batch that a signed quantizer's range is fitted to
SHRUNK = 24  # fractions of that range that are tried


class QuantAct(nn.Module):
    """A quantized activation: s * clamp(round(x / s), lo, hi), half to even (DESIGN, section 2).

    ``clip`` holds the bounds of the function it replaces (0 and 6 for ReLU6), applied first. Where
    values fall below 0, ``below`` of the 2^bits - 1 levels other than 0 lie there, as calibration
    found best; None stands for as many levels on either side (an image, or not yet calibrated).
    """

    def __init__(
        self,
        bits: int,
        clip: tuple[float, float],
        scale: Scale,
        encodes_input: bool,
        below: int | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.clip, self.kind, self.encodes_input = bits, clip, scale, encodes_input
        self.below = below
        self.fitted = self.signed and not encodes_input  # its range is fitted to both sides
        quantizer = _act_quantizer(bits, self.signed, scale, self.fitted)
        self.quant = qnn.QuantIdentity(act_quant=quantizer)

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
        low, high = self._levels()
        step = self.scale
        clipped = [torch.round(torch.tensor(bound, dtype=step.dtype) / step) for bound in self.clip]
        return max(low, int(clipped[0].clamp(min=low))), min(high, int(clipped[1].clamp(max=high)))

    def _levels(self) -> tuple[int, int]:
        """Smallest and largest level of the quantizer."""
        if self.below is not None:
            return -self.below, 2**self.bits - 1 - self.below
        high = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
        return (-high if self.signed else 0), high

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.clip
        if low == 0 and high == float("inf"):
            x = F.relu(x)
        elif (low, high) != (float("-inf"), float("inf")):
            x = F.hardtanh(x, low, high)
        if self.below is not None:  # bounds in levels; the gradient reaches the step through them
            step = self.quant.act_quant.scale().reshape(())
            low_level, high_level = self._levels()
            x = torch.clamp(x, low_level * step, high_level * step)
        return self.quant(x)

    def fit_(self, sample: Tensor, low: float, high: float) -> None:
        """Set step and levels to the least squared error on ``sample``, whose values lie between
        ``low`` and ``high``."""
        low, high, top = min(low, 0.0), max(high, 0.0), 2**self.bits - 1
        if high - low == 0 or not len(sample):
            low, high = -1.0, 1.0
        full = (high - low) / top
        power = self.kind is Scale.POWER_OF_TWO
        fractions = (
            [2.0**-k for k in range(5)] if power else [1 - k / (SHRUNK + 1) for k in range(SHRUNK)]
        )
        start = 2.0 ** math.ceil(math.log2(full)) if power else full
        below = min(top, round(-low / full))
        errors = []
        for fraction in fractions:
            step = start * fraction
            rounded = torch.round(sample / step).clamp_(-below, top - below)
            errors.append(float((sample - rounded * step).square().mean()))
        step = start * fractions[errors.index(min(errors))]
        proxy = self.quant.act_quant.fused_activation_quant_proxy
        value = proxy.tensor_quant.scaling_impl.value  # the range, or its logarithm
        wanted = math.log2(step) + self.bits if power else step * top
        value.data.fill_(wanted)
        self.below = below

    def extra_repr(self) -> str:
        below = "" if self.below is None else f", below={self.below}"
        return f"bits={self.bits}, clip={self.clip}, scale={self.kind}{below}"


def _act_quantizer(bits: int, signed: bool, scale: Scale, fitted: bool) -> type:
    """Per tensor. The step starts from a high percentile, and where levels are few (3 bits and
    below) from the least squared error; training moves it. A fitted one has all its levels on
    either side: `QuantAct` says which of them it uses."""
    few = bits <= FEW_BITS and not fitted
    if scale is Scale.POWER_OF_TWO:
        base: type = Int8ActPerTensorFixedPoint if signed else Uint8ActPerTensorFixedPoint
    elif signed:
        base = Int8ActPerTensorFloatMSE if few else Int8ActPerTensorFloat
    else:
        base = Uint8ActPerTensorFloatMSE if few else Uint8ActPerTensorFloat
    width = bits + 1 if fitted else bits
    settings = {"bit_width": width, "narrow_range": True} if signed else {"bit_width": width}
    return type("Quantizer", (base,), settings)


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """While it lasts, quantizers pass values on and watch them; afterwards all steps are set.

    Leaves the model in eval mode, its steps trainable (uncalibrated, Brevitas would use 1/L).
    """
    samples: dict[QuantAct, list[Tensor]] = {}

    def watch(layer: QuantAct, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().clamp(*layer.clip).flatten()
        edges = torch.stack([values.min(), values.max()])
        picked = values[:: max(1, values.numel() // SAMPLE)]
        samples.setdefault(layer, []).append(torch.cat([edges, picked]))

    handles = []
    for layer in model.modules():
        if isinstance(layer, QuantAct) and layer.fitted:
            layer.below = None
            handles.append(layer.register_forward_pre_hook(watch))
    try:
        with torch.no_grad(), calibration_mode(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
    for layer, values in samples.items():
        low, high = (float(torch.stack([item[k] for item in values]).aminmax()[k]) for k in (0, 1))
        layer.fit_(torch.cat([item[2:] for item in values]), low, high)
    model.eval()


def _weight_quantizer(bits: int, scale: Scale) -> type:
    """Per output channel, symmetric. From 5 bits up the step follows the largest weight; below,
    that wastes levels, so it starts from the least squared error and is trained."""
    if scale is Scale.POWER_OF_TWO:
        base: type = Int8WeightPerChannelFixedPointMSE
    else:
        base = Int8WeightPerChannelFloat if bits > 4 else Int8WeightPerChannelFloatMSE
    return type("Quantizer", (base,), {"bit_width": bits})


def quantized_weighted(layer: nn.Module, bits: int, scale: Scale) -> nn.Module:
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
            "below": layer.below,
        }
    if hasattr(layer, "weight_bits"):
        plain = plain_layer_to_json(layer)
        return {**plain, "weight_bits": layer.weight_bits, "scale": str(layer.weight_scale_kind)}
    return plain_layer_to_json(layer)


def quant_layer_from_json(config: Mapping[str, Any]) -> nn.Module:
    """The layer that `quant_layer_to_json` described, its tensors not yet filled in."""
    config = dict(config)
    if config["type"] == "QuantAct":
        low, high = config["clip"]
        clip = (float("-inf") if low is None else low, float("inf") if high is None else high)
        bits, scale, encodes = config["bits"], Scale(config["scale"]), config["encodes_input"]
        return QuantAct(bits, clip, scale, encodes, config.get("below"))
    if "weight_bits" in config:
        bits, scale = config.pop("weight_bits"), Scale(config.pop("scale"))
        return quantized_weighted(plain_layer_from_json(config), bits, scale)
    return plain_layer_from_json(config)


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
