"""`convert`: every quantized activation becomes a layer of multi-threshold neurons.

The converted network keeps the graph of the quantized one: plain layers with the quantized weights,
an encoder on the image, and an `MTNeuron` where a quantizer stood. `ConversionReport` says layer by
layer what was done, what feeds it, and what stays analog and why (invariant 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, fx, nn

from .errors import Fault, SpecError, UnsupportedLayerError
from .graph import (
    NORMS,
    WEIGHTED,
    describe,
    layer_nodes,
    layer_of,
    plain_layer_from_json,
    plain_layer_to_json,
    set_image_shape,
    source_of,
)
from .ladder import Firing, Ladder, Learned, Uniform, ladder_from_json, ladder_to_json
from .neurons import IF, LIF, PLIF, MTNeuron, NeuronSpec, Reset
from .quantize import QuantAct, QuantizedModel, quantized_weight
from .rules import DEFAULT_RULES, Carries, Kind, Rule, carried, rule_of, unknown_operators

Choice = TypeVar("Choice", bound=StrEnum)


class Presentation(StrEnum):
    """How an image is shown to the network over T steps (DESIGN, section 2)."""

    ONCE = "once"  # all charge in the first step, biases too; later steps carry corrections
    EVERY_STEP = "every_step"  # a constant current in each step; the read-out is a mean


class Encoder(nn.Module):
    """The quantized image: s * clamp(round(x / s), lo, hi). It is no neuron: it does not spike.

    Example:
        >>> Encoder(torch.tensor(0.5), (-1, 1))(torch.tensor([0.2, 0.3, 9.0]))
        tensor([0.0000, 0.5000, 0.5000])
    """

    def __init__(self, scale: Tensor, level_bounds: tuple[int, int]) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.level_bounds = level_bounds

    def levels(self, images: Tensor) -> Tensor:
        """The integer levels of the image."""
        return torch.round(images / self.scale).clamp(*self.level_bounds)

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images) * self.scale

    def extra_repr(self) -> str:
        return f"level_bounds={self.level_bounds}"


@dataclass(frozen=True)
class NeuronRow:
    """One layer of neurons in the report. ``levels`` are the QANN's, ``scale`` its step."""

    name: str
    ladder: str
    firing: str
    signed: bool
    levels: tuple[int, int]
    scale: float


@dataclass(frozen=True)
class WeightedRow:
    """One weighted layer in the report; ``spike_fed`` says whether its input is spikes."""

    name: str
    layer: str
    spike_fed: bool
    fed_by: tuple[str, ...]


@dataclass(frozen=True)
class AnalogRow:
    """One thing that is not driven by spikes, and why."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did, layer by layer; printed by ``mt-convert show``."""

    neurons: tuple[NeuronRow, ...]
    weighted: tuple[WeightedRow, ...]
    analog: tuple[AnalogRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        fed = sum(row.spike_fed for row in self.weighted)
        head = (
            f"{len(self.neurons)} layers of multi-threshold neurons; {fed} of {len(self.weighted)} "
            f"weighted layers fed by spikes; {len(self.analog)} analog"
        )
        lines = [f"  {row.name}  {row.operator}  {row.reason}" for row in self.analog]
        return "\n".join([head, *lines])


class SpikingModel(nn.Module):
    """A converted network. It holds no state: `simulate` runs it and owns time and potentials.

    ``layers`` is its graph, ``image_shape`` its images' (channels, height, width), ``report`` what
    was converted and how, ``presentation`` and ``whole_window`` how it is run: with
    ``whole_window`` each layer waits until the layers before it have emitted for all T steps.
    """

    def __init__(
        self,
        layers: fx.GraphModule,
        presentation: Presentation,
        whole_window: bool,
        rules: Mapping[Any, Rule] = DEFAULT_RULES,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.image_shape: tuple[int, ...] = tuple(layers.image_shape)  # type: ignore[arg-type]
        self.presentation, self.whole_window = presentation, whole_window
        self.rules = {**rules, **_SPIKING_LAYERS}
        self.report = _report(layers, self.rules)

    def neurons(self) -> Iterator[tuple[str, MTNeuron]]:
        """Name and layer of all its neurons, in order of execution."""
        for node, layer in layer_nodes(self.layers, MTNeuron):
            yield str(node.target), layer

    def forward(self, images: Tensor) -> NoReturn:
        raise TypeError("a SpikingModel has no forward: use simulate(snn, images, time_steps=T)")


def convert(
    qann: QuantizedModel,
    *,
    ladder: Ladder | None = None,
    firing: Firing | str | None = None,
    signed: bool = False,
    presentation: Presentation | str = Presentation.ONCE,
    whole_window: bool = False,
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
) -> SpikingModel:
    """The multi-threshold spiking network of a quantized network; ``qann`` is untouched.

    Without ``ladder`` each layer gets as many thresholds as its quantizer has levels: then T = 1 is
    exact. A shorter ladder needs several steps, and ``signed`` neurons to take back what was
    emitted too early. Layers whose levels go below 0 are always signed.

    Raises:
        UnsupportedLayerError: all layers and operators that cannot be converted, at once.
        SpecError: a ladder and a firing that do not go together.

    Example:
        >>> from .quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4)))
        >>> print(snn.report)
        1 layers of multi-threshold neurons; 1 of 2 weighted layers fed by spikes; 1 analog
          0  Conv2d  fed by the encoded image (direct coding), not by spikes
    """
    if not isinstance(qann, QuantizedModel):
        hint = "convert takes what quantize(model, QuantSpec(...), calibration=images) returned"
        raise UnsupportedLayerError(
            f"{type(qann).__name__} is not a quantized network",
            [Fault("model", "not quantized", hint)],
        )
    presentation = _choice(Presentation, "presentation", presentation)
    firing = None if firing is None else _choice(Firing, "firing", firing)
    _refuse(qann, ladder, rules)
    layers = fx.GraphModule(
        {
            **{name: value.detach().clone() for name, value in _loose_tensors(qann.layers)},
            **{
                name: _converted(layer, ladder, firing, signed)
                for name, layer in qann.layers.named_modules()
                if name in {str(node.target) for node in qann.layers.graph.nodes}
            },
        },
        _copied_graph(qann.layers),
    )
    set_image_shape(layers, qann.image_shape)
    return SpikingModel(layers.eval(), presentation, whole_window, rules)


def _choice(kind: type[Choice], name: str, value: str) -> Choice:
    """The member of an enumeration, or a SpecError that lists them."""
    if value not in tuple(kind):
        raise SpecError(f"{name} is {value!r}: allowed are {', '.join(kind)}")
    return kind(value)


def _refuse(qann: QuantizedModel, ladder: Ladder | None, rules: Mapping[Any, Rule]) -> None:
    """Collect everything that stands in the way of a conversion and raise once."""
    rules = {**rules, QuantAct: Rule(Kind.NEURON)}
    faults = unknown_operators(qann.layers, rules)
    for node, layer in layer_nodes(qann.layers, (nn.ReLU, nn.Hardtanh)):
        hint = "quantize the network: its thresholds are a quantizer's levels"
        faults.append(Fault(str(node.target), type(layer).__name__, hint))
    for node, layer in layer_nodes(qann.layers, QuantAct):
        step = layer.scale
        if not bool(torch.isfinite(step)) or float(step) <= 0:
            hint = "calibrate or train again: a step must be positive"
            faults.append(Fault(str(node.target), f"scale {float(step)}", hint))
        if isinstance(ladder, Learned) and not layer.encodes_input:
            hint = "this quantizer has equal steps: use Uniform, Binary or PowerOfTwo"
            faults.append(Fault(str(node.target), "learned gaps", hint))
    if faults:
        raise UnsupportedLayerError(
            f"{len(faults)} faults: this network cannot be converted", faults
        )


def _loose_tensors(layers: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that the graph reads directly, such as a layer scale."""
    for node in layers.graph.nodes:
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            yield str(node.target), getattr(layers.get_submodule(owner), leaf)


def _copied_graph(layers: fx.GraphModule) -> fx.Graph:
    """The graph without dropouts."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in layers.graph.nodes:
        if isinstance(layer_of(layers, node), nn.Dropout):
            new[node] = new[node.args[0]]
            continue
        new[node] = graph.node_copy(node, lambda argument: new[argument])
    return graph


def _converted(
    layer: nn.Module, ladder: Ladder | None, firing: Firing | None, signed: bool
) -> nn.Module:
    """The spiking network's layer for one of the quantized network's."""
    if isinstance(layer, QuantAct):
        low, high = layer.level_bounds
        if layer.encodes_input:
            return Encoder(layer.scale.clone(), (low, high))
        spec = NeuronSpec(
            ladder=ladder if ladder is not None else Uniform(max(-low, high, 1)),
            firing=firing,
            signed=signed or low < 0,
            bounds=(low, high),
        )
        return MTNeuron(spec, layer.scale.clone())
    if not isinstance(layer, WEIGHTED):
        return plain_with_tensors(layer)
    value, step = quantized_weight(layer)
    made = plain_layer_from_json(plain_layer_to_json(layer)).to(value.device)
    made.weight.data, made.weight.requires_grad = value, True
    if layer.bias is not None:
        made.bias.data = layer.bias.detach().clone()
    made.register_buffer("weight_scale", step)
    return made


def plain_with_tensors(layer: nn.Module) -> nn.Module:
    """A fresh copy of a layer without quantizers (batch norm, dropout)."""
    made = plain_layer_from_json(plain_layer_to_json(layer))
    made.load_state_dict(layer.state_dict())
    device = next((tensor.device for tensor in layer.state_dict().values()), torch.device("cpu"))
    return made.to(device)


# ---------------------------------------------------------------------------------------- report


def _report(layers: fx.GraphModule, rules: Mapping[Any, Rule]) -> ConversionReport:
    """Read the report off the graph, so that a loaded network has it too."""
    carries = carried(layers, rules)
    neurons, weighted, analog = [], [], []
    for node in layers.graph.nodes:
        layer, rule = layer_of(layers, node), rule_of(layers, node, rules)
        name = str(node.target) if layer is not None else str(node.meta.get("path") or node.name)
        if isinstance(layer, MTNeuron):
            neurons.append(_neuron_row(name, layer))
        elif isinstance(layer, WEIGHTED):
            source = carries[source_of(node)]
            spike_fed = source is Carries.SPIKES
            weighted.append(
                WeightedRow(name, type(layer).__name__, spike_fed, _feeders(layers, node, carries))
            )
            if not spike_fed:
                analog.append(AnalogRow(name, type(layer).__name__, _NOT_SPIKES[source]))
        elif rule is not None and rule.kind is Kind.DIFFERENCE:
            analog.append(AnalogRow(name, describe(layers, node), rule.reason))
        elif isinstance(layer, NORMS) and not _absorbed(layers, node, rules):
            analog.append(
                AnalogRow(name, type(layer).__name__, "affine that no single neuron absorbs")
            )
    return ConversionReport(tuple(neurons), tuple(weighted), tuple(analog))


_NOT_SPIKES = {
    Carries.IMAGE: "fed by the encoded image (direct coding), not by spikes",
    Carries.CURRENT: "fed by a current that no neuron quantizes",
    Carries.CONSTANT: "fed by a constant",
}


def _neuron_row(name: str, layer: MTNeuron) -> NeuronRow:
    """One neuron layer, as the report shows it."""
    spec = layer.spec
    assert spec.bounds is not None
    low, high = spec.bounds
    return NeuronRow(
        name=name,
        ladder=str(spec.ladder),
        firing=str(spec.firing or spec.ladder.natural_firing),
        signed=spec.signed,
        levels=(int(low or 0), int(high or 0)),
        scale=float(layer.delta.detach()),
    )


def _feeders(
    layers: fx.GraphModule, node: fx.Node, carries: Mapping[fx.Node, Carries]
) -> tuple[str, ...]:
    """Names of the neurons (or encoder) whose output reaches ``node`` without another between."""
    found: list[str] = []
    stack: list[fx.Node] = node.all_input_nodes
    while stack:
        item = stack.pop()
        if carries[item] is Carries.CONSTANT:  # sizes and parameters feed nothing
            continue
        if isinstance(layer_of(layers, item), (MTNeuron, Encoder)) or item.op == "placeholder":
            if str(item.target) not in found:
                found.append(str(item.target))
        else:
            stack.extend(reversed(item.all_input_nodes))
    return tuple(found)


def _absorbed(layers: fx.GraphModule, node: fx.Node, rules: Mapping[Any, Rule]) -> bool:
    """Whether a batch norm's output goes, through sums and moves, only to neurons or the output."""
    for user in node.users:
        rule = rule_of(layers, user, rules)
        if user.op == "output" or (rule is not None and rule.kind in (Kind.NEURON, Kind.SIZE)):
            continue
        if (
            rule is None
            or rule.kind not in (Kind.LINEAR, Kind.MOVE)
            or not _absorbed(layers, user, rules)
        ):
            return False
    return True


_SPIKING_LAYERS: dict[Any, Rule] = {
    MTNeuron: Rule(Kind.NEURON),
    Encoder: Rule(Kind.MOVE, "the image, quantized"),
}
SPIKING_RULES: Mapping[Any, Rule] = {**DEFAULT_RULES, **_SPIKING_LAYERS}


# ---------------------------------------------------------------------------------- layers as data


def spiking_layer_to_json(layer: nn.Module) -> dict[str, Any]:
    """A layer of a spiking network as plain data; its tensors are stored apart."""
    if isinstance(layer, MTNeuron):
        return {"type": "MTNeuron", **neuron_spec_to_json(layer.spec)}
    if isinstance(layer, Encoder):
        return {"type": "Encoder", "level_bounds": list(layer.level_bounds)}
    plain = plain_layer_to_json(layer)
    if isinstance(layer, WEIGHTED):
        plain["weight_scale"] = list(layer.get_buffer("weight_scale").shape)
    return plain


def spiking_layer_from_json(config: Mapping[str, Any]) -> nn.Module:
    """The layer that `spiking_layer_to_json` described, its tensors not yet filled in."""
    config = dict(config)
    kind = config["type"]
    if kind == "MTNeuron":
        config.pop("type")
        return MTNeuron(neuron_spec_from_json(config), torch.ones(()))
    if kind == "Encoder":
        low, high = config["level_bounds"]
        return Encoder(torch.ones(()), (int(low), int(high)))
    shape = config.pop("weight_scale", None)
    layer = plain_layer_from_json(config)
    if shape is not None:
        layer.register_buffer("weight_scale", torch.ones(shape))
    return layer


_CHARGES = {kind.__name__: kind for kind in (IF, LIF, PLIF)}


def neuron_spec_to_json(spec: NeuronSpec) -> dict[str, Any]:
    """A neuron spec as plain data. A surrogate belongs to training and is not stored.

    Example:
        >>> neuron_spec_to_json(NeuronSpec(Uniform(3)))["ladder"]
        {'kind': 'uniform', 'n': 3}
    """
    return {
        "ladder": ladder_to_json(spec.ladder),
        "firing": None if spec.firing is None else str(spec.firing),
        "charge": {"kind": type(spec.charge).__name__, **asdict(spec.charge)},
        "reset": str(spec.reset),
        "signed": spec.signed,
        "initial": spec.initial,
        "bounds": None if spec.bounds is None else list(spec.bounds),
    }


def neuron_spec_from_json(stored: Mapping[str, Any]) -> NeuronSpec:
    """The inverse of `neuron_spec_to_json`.

    Raises:
        SpecError: values that no neuron can have.
    """
    charge = dict(stored["charge"])
    return NeuronSpec(
        ladder=ladder_from_json(stored["ladder"]),
        firing=None if stored["firing"] is None else Firing(stored["firing"]),
        charge=_CHARGES[charge.pop("kind")](**charge),
        reset=Reset(stored["reset"]),
        signed=bool(stored["signed"]),
        initial=float(stored["initial"]),
        bounds=None if stored["bounds"] is None else tuple(stored["bounds"]),
    )
