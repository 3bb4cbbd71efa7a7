"""Layers with quantized weights on Brevitas, and quantized layers as plain data.

No QuantTensor leaves them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.given_network import without_torch_log

with warnings.catch_warnings(), without_torch_log():  # that there is no CUDA
    warnings.simplefilter("ignore")  # Brevitas warns about torch's own renamings on import
    from brevitas import nn as qnn
    from brevitas.quant import (
        Int8WeightPerChannelFixedPointMSE,
        Int8WeightPerChannelFloat,
        Int8WeightPerChannelFloatMSE,
    )

from ..graph.rules import DEFAULT_RULES, Rule
from ..graph.serialization import plain_layer_from_json, plain_layer_to_json
from ..neurons.step_table import StepTable
from .activations.formula import Formula, table_placeholder
from .activations.quant_act import QuantAct
from .spec import Scale, Spacing, WeightCode
from .weight_codes import CODED, encode_layer, weight_code
from .weight_norm import normalize_first

LEARNED_BITS = (2, 3, 4)  # of weights whose steps are trained


def for_inference(model: nn.Module, images: Tensor) -> None:
    """Put a model into Brevitas' own inference mode for good, its quantized weights cached."""
    from brevitas.export.inference import quant_inference_mode  # asks for the onnx package

    with torch.no_grad():
        quant_inference_mode(model, cache_quant_weight=True).__enter__()
        model(images)  # its first pass fills the caches


def _weight_quantizer(bits: int, scale: Scale, narrow_range: bool, learned: bool) -> type:
    """Per output channel, symmetric unless the range is not narrow. From 5 bits up the step follows
    the largest weight; below, that wastes levels, so it starts from the least squared error and is
    trained."""
    if scale is Scale.POWER_OF_TWO:
        base: type = Int8WeightPerChannelFixedPointMSE
    else:
        base = Int8WeightPerChannelFloatMSE if learned else Int8WeightPerChannelFloat
    return type("Quantizer", (base,), {"bit_width": bits, "narrow_range": narrow_range})


def quantize_weighted(
    layer: nn.Module,
    bits: int,
    scale: Scale,
    narrow_range: bool = True,
    normalized: bool = False,
    learned: bool = False,
) -> nn.Module:
    """The Brevitas layer of a convolution or linear, with the same parameters, not copies.

    Steps are trained with bits in `LEARNED_BITS`, or where they are ``learned``; without, the range
    is narrow. ``normalized``: weights that are, and stay so while they are trained.
    """
    trained = learned or bits in LEARNED_BITS
    narrow_range = narrow_range or not trained
    config = plain_layer_to_json(layer)
    kind = getattr(qnn, "Quant" + config.pop("type"))
    quantizer = _weight_quantizer(bits, scale, narrow_range, trained)
    quant_layer = kind(**config, weight_quant=quantizer, bias_quant=None)
    quant_layer.weight = layer.weight  # the same parameter: shared, frozen and named as it was
    if layer.bias is not None:
        quant_layer.bias = layer.bias
    if normalized:
        quant_layer.weight_quant.register_forward_pre_hook(normalize_first)
    quant_layer.weight_bits, quant_layer.weight_scale_kind = bits, scale
    quant_layer.narrow_range, quant_layer.normalized = narrow_range, normalized
    quant_layer.learned_step = trained
    return quant_layer.to(layer.weight.device)


def take_weight_(layer: nn.Module, value: Tensor, step: Tensor) -> bool:
    """Set the step of a layer's weights, whose range is not narrow, and the weights themselves
    where theirs are others; whether they are ``value`` to the last bit.

    Shapes: step [out, 1, …].
    """
    assert not layer.narrow_range, "half the range is a power of two: every step can be held"
    quantized_weight(layer)  # a trained step takes its start on first use
    quantizer, weight = layer.get_submodule("weight_quant"), layer.get_parameter("weight")
    (own,) = (item for item in quantizer.parameters() if item is not weight)
    bits: Any = layer.weight_bits
    own.data.copy_((step * 2 ** (bits - 1)).expand_as(own))
    if torch.equal(quantized_weight(layer)[0], value):
        return True
    weight.data.copy_(value)
    return torch.equal(quantized_weight(layer)[0], value)


def weight_levels(layer: nn.Module) -> tuple[int, int]:
    """Smallest and largest level of a layer's weights.

    Example:
        >>> weight_levels(quantize_weighted(nn.Linear(2, 1), 4, Scale.LEARNED))
        (-7, 7)
    """
    bits: Any = layer.weight_bits
    top = int(2 ** (bits - 1)) - 1
    return weight_range(layer) or (-top, top)


def set_weight_step_(layer: nn.Module, step: Tensor) -> None:
    """Set the learned step of each output channel's weights.

    Shapes: step [out].
    Example:
        >>> layer = quantize_weighted(nn.Linear(2, 1), 4, Scale.LEARNED)
        >>> set_weight_step_(layer, torch.tensor([0.5]))
        >>> quantized_weight(layer)[1]
        tensor([[0.5000]])
    """
    quantized_weight(layer)  # a trained step takes its start on first use
    quantizer, weight = layer.get_submodule("weight_quant"), layer.get_parameter("weight")
    (own,) = (item for item in quantizer.parameters() if item is not weight)
    low, high = weight_levels(layer)
    own.data.copy_((step * max(-low, high)).reshape(own.shape))


def weight_range(layer: nn.Module) -> tuple[int, int] | None:
    """Smallest and largest level of a weight whose range is not narrow; None where it is.

    Example:
        >>> weight_range(quantize_weighted(nn.Linear(2, 1), 2, Scale.LEARNED, narrow_range=False))
        (-2, 1)
    """
    if getattr(layer, "narrow_range", True):
        return None
    bits: Any = layer.weight_bits
    most = int(2 ** (bits - 1))
    return -most, most - 1


def is_normalized(layer: nn.Module) -> bool:
    """Whether a layer's weight is normalised before it is quantized.

    Example:
        >>> is_normalized(nn.Linear(2, 1))
        False
    """
    return bool(getattr(layer, "normalized", False))


def has_quantized_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is quantized, by Brevitas or by a code, rather than float.

    Example:
        >>> has_quantized_weight(nn.Linear(2, 1))
        False
    """
    return hasattr(layer, "weight_bits") and hasattr(layer, "weight")  # a code has bits alone


def step_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learned steps of a network's quantizers, of activations and of weights, each once.

    Example:
        >>> layer = quantize_weighted(nn.Conv2d(1, 3, 1), 4, Scale.LEARNED)
        >>> [list(step.shape) for step in step_parameters(layer)]
        [[3, 1, 1, 1]]
    """
    return [step for step, _ in _learned_steps(model)]


def step_sizes(model: nn.Module) -> dict[nn.Parameter, float]:
    """Of each learned step, how much it must move to become e times as large: its mean size, or
    1 / ln 2 where it is kept as a logarithm.

    A step that no image was shown yet has no size: it counts as 1.

    Example:
        >>> list(step_sizes(quantize_weighted(nn.Conv2d(1, 3, 1), 4, Scale.LEARNED)).values())
        [1.0]
    """
    return {
        step: 1 / math.log(2) if kind is Scale.POWER_OF_TWO else float(step.detach().abs().mean())
        for step, kind in _learned_steps(model)
    }


def _learned_steps(model: nn.Module) -> list[tuple[nn.Parameter, Scale]]:
    """Each learned step once, and its kind."""
    steps: dict[nn.Parameter, Scale] = {}
    for layer in model.modules():
        if isinstance(layer, QuantAct):
            quantizer: nn.Module = layer.quant
            kind: Any = layer.kind
        elif has_quantized_weight(layer) and not isinstance(layer, CODED):
            quantizer, kind = layer.get_submodule("weight_quant"), layer.weight_scale_kind
        else:
            continue
        weight = getattr(layer, "weight", None)  # which Brevitas' quantizer holds as well
        steps |= {step: kind for step in quantizer.parameters() if step is not weight}
    return list(steps.items())


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
            "spacing": str(Spacing.EQUAL if layer.gaps is None else Spacing.LEARNED),
            **formula_to_json(layer),
        }
    if isinstance(layer, CODED):
        code, plain = layer.code, plain_layer_to_json(layer)
        settings = {"code": str(code.kind), "codeword_bits": code.codeword_bits}
        return {**plain, **settings, "scale": str(code.scale)}
    if has_quantized_weight(layer):
        plain = plain_layer_to_json(layer)
        settings = {"weight_bits": layer.weight_bits, "scale": str(layer.weight_scale_kind)}
        settings |= {} if layer.narrow_range else {"narrow_range": False}
        settings |= {"normalized": True} if layer.normalized else {}
        own_step = layer.learned_step and layer.weight_bits not in LEARNED_BITS
        settings |= {"learned_step": True} if own_step else {}
        return {**plain, **settings}
    return plain_layer_to_json(layer)


def formula_to_json(layer: QuantAct) -> dict[str, Any]:
    """The function in front of a quantizer and the shape of its thresholds, where there is one."""
    if layer.formula is None:
        return {}
    shape = list(layer.table().thresholds.shape) if layer._is_calibrated() else None
    return {"function": {**layer.formula.to_json(), "table": shape}}


def tables_of(layers: nn.Module) -> dict[str, StepTable]:
    """The thresholds of functions, which are stored with a network but no part of its state: a
    training makes them anew."""
    return {
        f"{name}.table": layer.table()
        for name, layer in layers.named_modules()
        if isinstance(layer, QuantAct) and layer.formula is not None and layer._is_calibrated()
    }


def quant_layer_from_json(
    config: Mapping[str, Any], rules: Mapping[Any, Rule] = DEFAULT_RULES
) -> nn.Module:
    """The layer that `quant_layer_to_json` described, its tensors not yet filled in; ``rules`` say
    what may stand in a function."""
    config = dict(config)
    if config["type"] == "QuantAct":
        low, high = config["clip"]
        clip = (float("-inf") if low is None else low, float("inf") if high is None else high)
        bits, scale, encodes = config["bits"], Scale(config["scale"]), config["encodes_input"]
        spacing = Spacing(config.get("spacing", Spacing.EQUAL))
        formula = None
        if "function" in config:
            formula = Formula.from_json(config["function"], rules)
        act = QuantAct(bits, clip, scale, encodes, config.get("below"), spacing, formula)
        if formula is not None:
            act.take_table_(table_placeholder(config["function"].get("table"), formula.axis))
        return act
    if "code" in config:
        kind, scale = WeightCode(config.pop("code")), Scale(config.pop("scale"))
        code = weight_code(kind, config.pop("codeword_bits"), scale)
        return encode_layer(plain_layer_from_json(config), code)
    if "weight_bits" in config:
        bits, scale = config.pop("weight_bits"), Scale(config.pop("scale"))
        kind_of_range = config.pop("narrow_range", True), config.pop("normalized", False)
        learned = config.pop("learned_step", False)
        plain = plain_layer_from_json(config)
        return quantize_weighted(plain, bits, scale, *kind_of_range, learned)
    return plain_layer_from_json(config)


def quantized_weight(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Value and step of a quantized layer's weight, Brevitas' or coded.

    Shapes:
        value as the layer's weight; step [out, 1, …].
    """
    if isinstance(layer, CODED):
        levels, step = layer.code.encode(layer.weight.detach())
        return levels * step, step
    with torch.no_grad():
        weight = layer.quant_weight()  # type: ignore[operator]
        value, step = weight.value.detach().clone(), weight.scale.detach().clone()
    return value, step.reshape(-1, *[1] * (value.dim() - 1)).expand(
        value.shape[0], *step.shape[1:] or [1]
    ).clone()
