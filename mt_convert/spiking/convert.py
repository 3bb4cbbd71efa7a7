"""`convert`: every quantized activation becomes a layer of multi-threshold neurons.

The converted network keeps the graph of the quantized one: plain layers with the quantized weights,
an encoder on the image, and an `MTNeuron` where a quantizer stood. `ConversionReport` says layer by
layer what was done, what feeds it, and what stays analog and why (invariant 9).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..errors import (
    DataError,
    Fault,
    SpecError,
    UnsupportedLayerError,
    did_you_mean,
    many,
    near_names,
)
from ..graph.float32 import in_float32, network_dtype
from ..graph.image_batches import collect
from ..graph.leftovers import forget_leftovers
from ..graph.nodes import layer_nodes, layer_of, note_warning, set_image_shape, warnings_of
from ..graph.operations import operations, unknown_operators
from ..graph.rules import DEFAULT_RULES, OperatorKind, Rule
from ..graph.serialization import plain_layer_from_json, plain_layer_to_json
from ..neurons.ladder import Firing, Ladder, Learned, Radix, Uniform, UnsignedRadix, ladder_of
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..quantization.activations.quant_act import QuantAct
from ..quantization.brevitas_layers import (
    has_quantized_weight,
    quantized_weight,
    weight_range,
)
from ..quantization.quantize import QuantizedModel
from ..quantization.suspicions import not_finite
from ..system.devices import device_of
from .model import SpikingModel
from .presentation import Encoder, Presentation
from .verify import random_images
from .verify import verify as verify_conversion

Choice = TypeVar("Choice", bound=StrEnum)
Ladders = Ladder | Mapping[str, Ladder] | None
GivenLadders = Ladder | int | Mapping[str, Ladder | int] | None


@forget_leftovers()
@in_float32()
def convert(
    qann: QuantizedModel,
    *,
    ladder: GivenLadders = None,
    firing: Firing | str | None = None,
    signed: bool = False,
    presentation: Presentation | str = Presentation.ONCE,
    whole_window: bool = False,
    verify: Any = False,
    literal: str = "sample",
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
) -> SpikingModel:
    """The multi-threshold spiking network of a quantized network; ``qann`` is untouched.

    Without ``ladder`` each layer gets as many thresholds as its quantizer has levels: then T = 1 is
    exact. A shorter ladder needs several steps, and ``signed`` neurons to take back what was
    emitted too early; a mapping gives the ladders of single layers by name; a number n stands for
    `Uniform` of n. Layers whose levels go below 0 are always signed. ``Radix(n)`` needs
    ``whole_window``: each layer waits for all T steps of those before it, and
    T = ceil(log_{n+1}(L + 1)) steps are exact. ``verify`` runs both networks on a probe batch (its
    images, in any form that `quantize` takes, or random ones for True) and puts the `Verdict` into
    the report; ``literal="all"`` fires every neuron threshold by threshold, not a sample of each.

    Raises:
        UnsupportedLayerError: all layers and operators that cannot be converted, at once.
        SpecError: a ladder and a firing that do not go together; a network in another type than
            float32.

    Example:
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4)))
        >>> print(snn.report)
        1 layer of multi-threshold neurons; 1 of 2 weighted layers fed by spikes; 1 analog
          0  Conv2d  fed by the encoded image (direct coding), not by spikes
    """
    if not isinstance(qann, QuantizedModel):
        hint = "convert takes what quantize(model, QuantSpec(...), calibration=images) returned"
        if isinstance(qann, SpikingModel):
            hint = "it is converted already: convert the quantized network that it came from"
        raise UnsupportedLayerError(
            f"{type(qann).__name__} is not a quantized network",
            [Fault("model", "not quantized", hint)],
        )
    network_dtype(qann, (torch.float32,))
    ladder = _ladders(ladder)
    presentation = _choice(Presentation, "presentation", presentation)
    firing = None if firing is None else _choice(Firing, "firing", firing)
    _refuse(qann, ladder, firing, presentation, whole_window, rules)
    layers = _convert_graph(qann, ladder, firing, signed)
    snn = SpikingModel(layers, presentation, whole_window, rules)
    snn.report = replace(
        snn.report,
        warnings=(*qann.warnings, *warnings_of(layers)),
        float_agreement=qann.float_agreement,
        float_images=qann.float_images,
        functions=qann.functions,
        unrounded_agreement=qann.unrounded_agreement,
        data_settings=qann.data_settings,
    )
    if verify is not False:
        probe = (
            random_images(qann.image_shape)
            if verify is True
            else collect(verify, name="images to verify on", image_shape=qann.image_shape)
        )
        if not len(probe):
            raise DataError("no images to verify on: pass some, or verify=True for made-up ones")

        def build(
            ladder: Mapping[str, Ladder] | None, firing: Firing | None, signed: bool
        ) -> SpikingModel:
            layers = _convert_graph(qann, ladder, firing, signed, snn.layers)
            return SpikingModel(layers, Presentation.ONCE, False, rules)

        verdict = verify_conversion(
            qann, build, probe.to(device_of(qann)), snn=snn, literal=literal
        )
        snn.report = replace(snn.report, verdict=verdict)
    return snn


def _convert_graph(
    qann: QuantizedModel,
    ladder: Ladders,
    firing: Firing | None,
    signed: bool,
    other: fx.GraphModule | None = None,
) -> fx.GraphModule:
    """The graph of the spiking network; layers without neurons are those of an ``other``
    conversion, where there is one."""
    ladders = _fill_windows(qann, ladder)
    shared = {} if other is None else dict(other.named_modules())  # dropouts are not among them
    called = {str(node.target) for node in qann.layers.graph.nodes if node.op == "call_module"}
    layers = fx.GraphModule(
        {
            **{name: value.detach().clone() for name, value in _loose_tensors(qann.layers)},
            **{
                name: _convert_layer(layer, ladders.get(name), firing, signed)
                if isinstance(layer, QuantAct) or name not in shared
                else shared[name]
                for name, layer in qann.layers.named_modules()
                if name in called
            },
        },
        _copy_graph(qann.layers),
    )
    set_image_shape(layers, qann.image_shape)
    _tie_(layers, qann.layers)
    return layers.eval()


def _tie_(layers: fx.GraphModule, source: fx.GraphModule) -> None:
    """What layers share in the quantized network they share in the spiking one, where each one's
    own quantizer left the same numbers; else it is noted."""
    places: dict[int, list[str]] = {}
    for name, parameter in source.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    here = dict(layers.named_parameters())
    for group in places.values():
        first, *others = [name for name in group if name in here] or [""]
        for name in others:
            owner, _, leaf = name.rpartition(".")
            layer, own = layers.get_submodule(owner), layers.get_parameter(first)
            if torch.equal(layer.get_parameter(leaf), own):
                setattr(layer, leaf, own)
            else:
                text = f"{first} and {name} are one parameter with a step of its own for each layer"
                note_warning(layers, f"{text}: fine-tuning trains them apart")


def _choice(kind: type[Choice], name: str, value: str) -> Choice:
    """The member of an enumeration, or a SpecError that lists them."""
    if value not in tuple(kind):
        raise SpecError(f"{name} is {value!r}: allowed are {', '.join(kind)}")
    return kind(value)


def _ladders(given: GivenLadders) -> Ladders:
    """Ladders, numbers of thresholds among them made so."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {name: ladder_of(item) for name, item in given.items()}
    return ladder_of(given)


def _ladder_of(name: str, ladder: Ladders) -> Ladder | None:
    """The ladder asked for in one layer."""
    return ladder.get(name) if isinstance(ladder, Mapping) else ladder


def _fill_windows(qann: QuantizedModel, ladder: Ladders) -> dict[str, Ladder | None]:
    """The ladder asked for in each layer; radix ones with the steps that the largest level of the
    network takes, so that all trains of digits end together, and with the layer's learned gaps."""
    neurons = {
        str(node.target): act
        for node, act in layer_nodes(qann.layers, QuantAct)
        if not act.encodes_input
    }
    ladders = {name: _ladder_of(name, ladder) for name in neurons}
    steps = [
        max(item.steps or 1, item.digits(_span(neurons[name], item)))
        for name, item in ladders.items()
        if isinstance(item, Radix)
    ]
    for name, item in ladders.items():
        if isinstance(item, Radix):
            learned = neurons[name].learned_ladder
            gaps = () if learned is None else learned.gaps
            ladders[name] = replace(item, steps=max(steps), gaps=gaps)
    return ladders


def _span(layer: QuantAct, ladder: Radix) -> int:
    """The largest number that the digits of one layer say."""
    low, high = layer.level_bounds
    return max(high - low, 1) if ladder.lifted else _largest_level(layer)


def _largest_level(layer: QuantAct) -> int:
    """L of one quantizer, on either side."""
    low, high = layer.level_bounds
    return max(-low, high, 1)


def _refuse(
    qann: QuantizedModel,
    ladder: Ladders,
    firing: Firing | None,
    presentation: Presentation,
    whole_window: bool,
    rules: Mapping[Any, Rule],
) -> None:
    """Collect everything that stands in the way of a conversion and raise once."""
    rows = operations(qann.layers, {**rules, QuantAct: Rule(OperatorKind.NEURON)})
    faults = unknown_operators(rows) + not_finite(qann.layers)
    if isinstance(ladder, Mapping):
        faults += _unknown_names(qann, ladder)
    for row in rows.values():
        layer = row.layer
        if isinstance(layer, (nn.ReLU, nn.Hardtanh)) and not row.constant:  # else nothing spikes
            hint = "quantize the network: its thresholds are a quantizer's levels"
            faults.append(Fault(row.name, row.operator, hint))
        if not isinstance(layer, QuantAct):
            continue
        step = layer.scale
        if not bool(torch.isfinite(step)) or float(step) <= 0:
            hint = "calibrate or train again: a step must be positive"
            faults.append(Fault(row.name, f"scale {float(step)}", hint))
        if not layer.encodes_input:
            asked = _ladder_of(row.name, ladder)
            faults += _ladder_faults(row.name, layer, asked, firing, presentation, whole_window)
    if faults:
        raise UnsupportedLayerError(
            f"{many(faults, 'fault', 'faults')}: this network cannot be converted", faults
        )


def _unknown_names(qann: QuantizedModel, ladder: Mapping[str, Ladder]) -> Iterator[Fault]:
    """Ladders for layers that are not there."""
    here = [str(n.target) for n, act in layer_nodes(qann.layers, QuantAct) if not act.encodes_input]
    for name in ladder:
        if name not in here:
            hint = did_you_mean(near_names(str(name), here)) or f"layers: {', '.join(here[:12])}"
            yield Fault(str(name), "is no layer of neurons", hint)


def _ladder_faults(
    name: str,
    layer: QuantAct,
    ladder: Ladder | None,
    firing: Firing | None,
    presentation: Presentation,
    whole_window: bool,
) -> Iterator[Fault]:
    """What speaks against a ladder for one quantizer: gaps must be equal on both sides, or none."""
    if isinstance(ladder, Radix):
        yield from _radix_faults(name, layer, ladder, presentation, whole_window)
    elif layer.learned_ladder is None:
        if isinstance(ladder, Learned):
            hint = "this quantizer has equal steps: use Uniform, Binary or PowerOfTwo"
            yield Fault(name, "learned gaps", hint)
    elif ladder is not None and ladder != layer.learned_ladder:
        yield Fault(name, str(ladder), "its gaps were learned: convert without ladder")
    elif firing is Firing.CASCADE:
        hint = "each threshold emits one level, in parallel: leave firing out"
        yield Fault(name, "learned gaps, in a cascade", hint)
    elif presentation is Presentation.EVERY_STEP:
        hint = "a window of T steps has equal levels: use presentation='once'"
        yield Fault(name, "learned gaps, presented in every step", hint)


def _radix_faults(
    name: str, layer: QuantAct, ladder: Radix, presentation: Presentation, whole_window: bool
) -> Iterator[Fault]:
    """What speaks against digits for one quantizer: a level has none before it is complete."""
    if not whole_window:
        hint = "a level has digits once its input is complete: convert with whole_window=True"
        yield Fault(name, f"Radix({ladder.n}) without whole windows", hint)
    if presentation is Presentation.EVERY_STEP:
        hint = "steps are worth different amounts: use presentation='once'"
        yield Fault(name, f"Radix({ladder.n}), presented in every step", hint)
    learned = layer.learned_ladder
    if ladder.gaps and (learned is None or ladder.gaps != learned.gaps):
        hint = "pass Radix(n) without gaps: those of the quantizer are filled in"
        yield Fault(name, "gaps that are not the quantizer's", hint)


def _loose_tensors(layers: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that the graph reads directly, such as a layer scale."""
    for node in layers.graph.nodes:
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            yield str(node.target), getattr(layers.get_submodule(owner), leaf)


def _copy_graph(layers: fx.GraphModule) -> fx.Graph:
    """The graph without dropouts."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in layers.graph.nodes:
        if isinstance(layer_of(layers, node), nn.Dropout):
            new[node] = new[node.args[0]]
            continue
        new[node] = graph.node_copy(node, lambda argument: new[argument])
    return graph


def _convert_layer(
    layer: nn.Module, ladder: Ladder | None, firing: Firing | None, signed: bool
) -> nn.Module:
    """The spiking network's layer for one of the quantized network's."""
    if isinstance(layer, QuantAct):
        low, high = layer.level_bounds
        if layer.encodes_input:
            return Encoder(layer.scale.clone(), (low, high))
        learned = layer.learned_ladder
        spec = NeuronSpec(
            ladder=ladder or learned or Uniform(_largest_level(layer)),
            firing=firing,
            signed=(signed or low < 0) and not isinstance(ladder, UnsignedRadix),
            initial=0.5 if learned is None else 0.0,
            bounds=(low, high),
        )
        if layer.formula is None:
            return MTNeuron(spec, layer.scale.clone(), clip=layer.clip)
        table, formula = copy.deepcopy(layer.table()), layer.formula.freeze()
        return MTNeuron(spec, layer.scale.clone(), clip=layer.clip, table=table, formula=formula)
    if not has_quantized_weight(layer):
        return plain_with_tensors(layer)
    value, step = quantized_weight(layer)
    plain: Any = plain_layer_from_json(plain_layer_to_json(layer)).to(value.device)
    plain.weight.data = value
    if plain.bias is not None:
        plain.bias.data = layer.get_parameter("bias").detach().clone()
    copy_flags_(layer, plain)
    plain.register_buffer("weight_scale", step)
    if (bounds := weight_range(layer)) is not None:
        plain.register_buffer("weight_range", torch.tensor(bounds))
    return plain


def plain_with_tensors(layer: nn.Module) -> nn.Module:
    """A fresh copy of a layer without quantizers (batch norm, dropout)."""
    plain = plain_layer_from_json(plain_layer_to_json(layer))
    plain.load_state_dict(layer.state_dict())
    copy_flags_(layer, plain)
    return plain.to(device_of(layer))


def copy_flags_(source: nn.Module, layer: nn.Module) -> None:
    """What is frozen in one layer is frozen in the other."""
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(source.get_parameter(name).requires_grad)
