"""What a conversion did: neurons, what feeds each layer, what stays analog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from ..graph.nodes import NORMS, describe, is_constant, layer_of, node_name
from ..graph.rules import CONSTANT_SIDE, OperatorKind, Rule, data_inputs, rule_of
from ..graph.signals import Signal, signals_of
from ..neurons.layer import MTNeuron
from .presentation import Encoder


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
    """One weighted layer, or product of two activations, in the report.

    ``spike_fed``: all that it reads is spikes.
    """

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
class Verdict:
    """The result of `convert` with ``verify``: is the conversion exact? On ``images`` probe images.

    ``exact_t1``: at T = 1 and n = L every neuron and the logits are bit-equal to the quantized
    network, and every layer is on ``adversarial`` inputs within 4 ulp of its thresholds.
    ``settling_t``: with ``thresholds`` per step and signed neurons, the first step from which on
    all totals and logits are bit-equal; None if they were not within ``time_steps``. ``differs``:
    the layers that are not exact.
    """

    exact_t1: bool
    settling_t: int | None
    thresholds: int
    time_steps: int
    images: int
    neurons: int
    adversarial: int
    differs: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.exact_t1:
            return f"NOT exact at T = 1: {', '.join(self.differs[:5])}"
        settled = (
            f"settles at T = {self.settling_t}"
            if self.settling_t is not None
            else f"does not settle within {self.time_steps} steps"
        )
        return (
            f"exact at T = 1 ({self.neurons} neurons on {self.images} images, {self.adversarial} "
            f"inputs next to thresholds); with n = {self.thresholds} it {settled}"
        )


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did, layer by layer; printed by ``mt-convert show``.

    ``warnings``: what may make the network another one than the user thinks. ``float_agreement``:
    the share of ``float_images`` calibration images to which the quantized network, before it was
    trained, gave the float network's class; exact is said of the quantized network alone.
    """

    neurons: tuple[NeuronRow, ...]
    weighted: tuple[WeightedRow, ...]
    analog: tuple[AnalogRow, ...]
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    float_agreement: float | None = None
    float_images: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ConversionReport:
        """The inverse of `to_json`, through JSON too; reports of earlier versions are read."""
        verdict = stored.get("verdict")
        return cls(
            tuple(
                NeuronRow(**{**row, "levels": tuple(row["levels"])}) for row in stored["neurons"]
            ),
            tuple(
                WeightedRow(**{**row, "fed_by": tuple(row["fed_by"])}) for row in stored["weighted"]
            ),
            tuple(AnalogRow(**row) for row in stored["analog"]),
            verdict and Verdict(**{**verdict, "differs": tuple(verdict["differs"])}),
            tuple(stored.get("warnings", ())),
            stored.get("float_agreement"),
            stored.get("float_images", 0),
        )

    def __str__(self) -> str:
        fed = sum(row.spike_fed for row in self.weighted)
        products = any(row.layer.startswith("aten.") for row in self.weighted)
        what = "weighted layers and products" if products else "weighted layers"
        head = (
            f"{len(self.neurons)} layers of multi-threshold neurons; {fed} of {len(self.weighted)} "
            f"{what} fed by spikes; {len(self.analog)} analog"
        )
        lines = [f"  {row.name}  {row.operator}  {row.reason}" for row in self.analog]
        verdict = [] if self.verdict is None else [str(self.verdict)]
        if verdict and self.float_agreement is not None:
            verdict[0] += (
                "; equal means to the quantized network, which gave the float network's class to "
                f"{100 * self.float_agreement:.1f} % of {self.float_images} calibration images "
                "before any training"
            )
        warnings = [f"warning: {text}" for text in self.warnings]
        return "\n".join([head, *verdict, *warnings, *lines])


def _report(layers: fx.GraphModule, rules: Mapping[Any, Rule]) -> ConversionReport:
    """Read the report off the graph, so that a loaded network has it too."""
    signals = signals_of(layers, rules)
    neurons, weighted, analog = [], [], []
    for node in layers.graph.nodes:
        layer, rule = layer_of(layers, node), rule_of(layers, node, rules)
        name = node_name(node)
        if isinstance(layer, MTNeuron):
            neurons.append(_neuron_row(name, layer))
        elif rule is not None and rule.kind in (OperatorKind.WEIGHTED, OperatorKind.PRODUCT):
            what = describe(layers, node)
            others = [signals[item] for item in data_inputs(node)]
            others = [item for item in others if item is not Signal.SPIKES]
            if is_constant(node):
                others = [Signal.CONSTANT]
            feeders = _feeders(layers, node, signals)
            weighted.append(WeightedRow(name, what, not others, feeders))
            if others:
                analog.append(AnalogRow(name, what, _NOT_SPIKES[others[0]]))
            elif rule.reason == CONSTANT_SIDE:
                analog.append(AnalogRow(name, what, "fed by spikes, but its constant is a float"))
        elif rule is not None and rule.kind is OperatorKind.DIFFERENCE:
            analog.append(AnalogRow(name, describe(layers, node), rule.reason))
        elif isinstance(layer, NORMS) and not _is_absorbed(layers, node, rules):
            analog.append(
                AnalogRow(name, type(layer).__name__, "affine that no single neuron absorbs")
            )
    return ConversionReport(tuple(neurons), tuple(weighted), tuple(analog))


_NOT_SPIKES = {
    Signal.IMAGE: "fed by the encoded image (direct coding), not by spikes",
    Signal.CURRENT: "fed by a current that no neuron quantizes",
    Signal.CONSTANT: "reads parameters alone, not the image",
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
    layers: fx.GraphModule, node: fx.Node, signals: Mapping[fx.Node, Signal]
) -> tuple[str, ...]:
    """Names of the neurons (or encoder) whose output reaches ``node`` without another between."""
    names: list[str] = []
    stack: list[fx.Node] = node.all_input_nodes
    while stack:
        item = stack.pop()
        if signals[item] is Signal.CONSTANT:  # sizes and parameters feed nothing
            continue
        if isinstance(layer_of(layers, item), (MTNeuron, Encoder)) or item.op == "placeholder":
            if str(item.target) not in names:
                names.append(str(item.target))
        else:
            stack.extend(reversed(item.all_input_nodes))
    return tuple(names)


def _is_absorbed(layers: fx.GraphModule, node: fx.Node, rules: Mapping[Any, Rule]) -> bool:
    """Whether a batch norm's output goes, through sums and moves, only to neurons or the output."""
    for user in node.users:
        rule = rule_of(layers, user, rules)
        if user.op == "output" or (
            rule is not None and rule.kind in (OperatorKind.NEURON, OperatorKind.SIZE)
        ):
            continue
        if (
            rule is None
            or rule.kind not in (OperatorKind.LINEAR, OperatorKind.MOVE)
            or not _is_absorbed(layers, user, rules)
        ):
            return False
    return True
