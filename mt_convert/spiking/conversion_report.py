"""What a conversion did: neurons, what feeds each layer, what stays analog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import fx

from ..errors import many
from ..graph.nodes import NORMS
from ..graph.operations import Operation, Operations
from ..graph.rules import CONSTANT_SIDE, NON_LINEAR, OperatorKind
from ..graph.signals import Signal
from ..neurons.layer import MTNeuron
from ..quantization.activations.placement import FunctionRow
from ..quantization.spec import LADDER
from ..report.records import Records
from ..system.plain_data import as_type
from .latency import Latency, latency_of
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
class WindowVerdict:
    """Whole windows of digits: are they the quantized network after ``steps`` steps?

    ``membrane_share``: the share of one image's neurons that differ where membranes multiply by
    their base and add digits, which rounds floats otherwise than one sum does; None, and
    ``reason``, where no one membrane adds them.
    """

    steps: int
    exact: bool
    membrane_share: float | None = None
    reason: str = ""
    differs: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.exact:
            return f"NOT exact in windows of T = {self.steps}: {', '.join(self.differs[:5])}"
        head = f"exact in windows of T = {self.steps}"
        if self.membrane_share is None:
            return f"{head}; no membrane adds its digits: {self.reason}"
        return (
            f"{head}; membranes that add digits differ in {100 * self.membrane_share:.4f} % of "
            "neurons"
        )


@dataclass(frozen=True)
class Verdict:
    """The result of `convert` with ``verify``: is the conversion exact? On ``images`` probe images.

    ``exact_t1``: at T = 1 and n = L every neuron and the logits are bit-equal to the quantized
    network, and every layer is on ``adversarial`` inputs within 4 ulp of its thresholds.
    ``settling_t``: with ``thresholds`` per step and signed neurons, the first step from which on
    all totals and logits are bit-equal; None if they were not within ``time_steps``. ``differs``:
    the layers that are not exact. ``window``: of a network of digits, its windows.
    """

    exact_t1: bool
    settling_t: int | None
    thresholds: int
    time_steps: int
    images: int
    neurons: int
    adversarial: int
    differs: tuple[str, ...] = ()
    window: WindowVerdict | None = None

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
            + ("" if self.window is None else f"; {self.window}")
        )


@dataclass(frozen=True, repr=False)
class ConversionReport(Records):
    """What `convert` did, layer by layer; printed by ``mt-convert show``.

    ``warnings``: what may make the network another one than the user thinks. ``float_agreement``:
    the share of ``float_images`` calibration images to which the quantized network, before it was
    trained, gave the float network's class; exact is said of the quantized network alone.
    ``latency``: how long an image takes, where layers wait for their whole window.
    ``functions``: what became of GELU and its kin, thresholds or analog; ``unrounded_agreement``:
    the same share as ``float_agreement`` where those that became thresholds are computed as they
    are, which is what their levels cost.
    ``calibrated_T``: the steps it was calibrated for; `simulate` warns where it runs for others.
    ``data_settings``: how its images are prepared, as timm's ``pretrained_cfg`` says it.
    """

    neurons: tuple[NeuronRow, ...]
    weighted: tuple[WeightedRow, ...]
    analog: tuple[AnalogRow, ...]
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    float_agreement: float | None = None
    float_images: int = 0
    latency: Latency | None = None
    calibrated_T: int | None = None
    functions: tuple[FunctionRow, ...] = ()
    unrounded_agreement: float | None = None
    data_settings: Mapping[str, Any] | None = None

    def of_origin(self, origin: ConversionReport) -> ConversionReport:
        """With what holds of a network whatever its neurons are: what its origin's report says."""
        agreement = ("float_agreement", "float_images", "unrounded_agreement")
        names = ("warnings", *agreement, "calibrated_T", "functions", "data_settings")
        return replace(self, **{name: getattr(origin, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer of neurons, each weighted layer, and whatever else is analog."""
        reasons = {(row.name, row.operator): row.reason for row in self.analog}
        rows: list[dict[str, Any]] = [
            {"name": row.name, "kind": "neurons", "operator": row.ladder, "step": row.scale}
            for row in self.neurons
        ]
        rows += [
            {
                **{"name": row.name, "kind": "weighted", "operator": row.layer},
                **{"spike_fed": row.spike_fed, "fed_by": " ".join(row.fed_by)},
                "reason": reasons.pop((row.name, row.layer), None),
            }
            for row in self.weighted
        ]
        rows += [
            {"name": name, "kind": "analog", "operator": operator, "reason": reason}
            for (name, operator), reason in reasons.items()
        ]
        return rows

    def _said_of_functions(self) -> list[str]:
        """Which functions became thresholds, and what that costs."""
        if not self.functions:
            return []
        ladders = [row for row in self.functions if row.taken == LADDER]
        analog = [row for row in self.functions if row.taken != LADDER]
        text = (
            f"{len(ladders)} of {many(self.functions, 'function', 'functions')} became thresholds"
        )
        if self.float_agreement is not None and self.unrounded_agreement is not None:
            text += (
                f": the float network's class on {100 * self.float_agreement:.1f} % of "
                f"{self.float_images} calibration images, on "
                f"{100 * self.unrounded_agreement:.1f} % with these functions not rounded"
            )
        return [text, *(f"  {row.name}  {row.function}  analog: {row.taken}" for row in analog)]

    def __repr__(self) -> str:
        fed = sum(row.spike_fed for row in self.weighted)
        said = "not verified" if self.verdict is None else str(self.verdict)
        return (
            f"ConversionReport({many(self.neurons, 'layer', 'layers')} of neurons, {fed} of "
            f"{len(self.weighted)} weighted layers fed by spikes, "
            f"{len(self.analog)} analog; {said})"
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ConversionReport:
        """The inverse of `to_json`, through JSON too; reports of earlier versions are read.

        Raises:
            CheckpointError: a part is missing, or of another type.
        """
        report: ConversionReport = as_type(cls, stored)
        return report

    def __str__(self) -> str:
        fed = sum(row.spike_fed for row in self.weighted)
        products = any(row.layer.startswith("aten.") for row in self.weighted)
        what = "weighted layers and products" if products else "weighted layers"
        head = (
            f"{many(self.neurons, 'layer', 'layers')} of multi-threshold neurons; {fed} of "
            f"{len(self.weighted)} {what} fed by spikes; {len(self.analog)} analog"
        )
        lines = [f"  {row.name}  {row.operator}  {row.reason}" for row in self.analog]
        verdict = [] if self.verdict is None else [str(self.verdict)]
        if verdict and self.float_agreement is not None:
            verdict[0] += (
                "; equal means to the quantized network, which gave the float network's class to "
                f"{100 * self.float_agreement:.1f} % of {self.float_images} calibration images "
                "before any training"
            )
        if self.latency is not None:
            verdict.append(str(self.latency))
        verdict += self._said_of_functions()
        warnings = [f"warning: {text}" for text in self.warnings]
        return "\n".join([head, *verdict, *warnings, *lines])


def _report(operations: Operations, whole_window: bool) -> ConversionReport:
    """Read the report off the graph, so that a loaded network has it too."""
    neurons, weighted, analog = [], [], []
    for row in operations.values():
        reason = None
        if isinstance(row.layer, MTNeuron):
            neurons.append(_neuron_row(row.name, row.layer))
        elif row.kind in (OperatorKind.WEIGHTED, OperatorKind.PRODUCT):
            spike_fed = row.fed_by is Signal.SPIKES
            feeders = _feeders(operations, row)
            weighted.append(WeightedRow(row.name, row.operator, spike_fed, feeders))
            if not spike_fed:
                reason = _NOT_SPIKES[row.fed_by]
            elif row.reason == CONSTANT_SIDE:
                reason = "fed by spikes, but its constant is a float"
        elif row.kind in NON_LINEAR:
            reason = row.reason
        elif isinstance(row.layer, NORMS) and not (
            _follows_its_weights(operations, row) or _reaches_neurons_alone(operations, row)
        ):
            reason = "affine that neither weights nor neurons absorb"
        if reason is not None:
            analog.append(AnalogRow(row.name, row.operator, reason))
    latency = latency_of(operations) if whole_window else None
    return ConversionReport(tuple(neurons), tuple(weighted), tuple(analog), latency=latency)


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
    text = getattr(layer.formula, "text", None)
    return NeuronRow(
        name=name,
        ladder=str(spec.ladder) + ("" if text is None else f" of {text}"),
        firing=str(spec.firing or spec.ladder.natural_firing),
        signed=spec.signed,
        levels=(int(low or 0), int(high or 0)),
        scale=float(layer.delta.detach()),
    )


def _feeders(operations: Operations, reader: Operation) -> tuple[str, ...]:
    """Names of the neurons (or encoder) whose output reaches a layer without another between."""
    names: list[str] = []
    stack: list[fx.Node] = reader.node.all_input_nodes
    while stack:
        row = operations[stack.pop()]
        if row.signal is Signal.CONSTANT:  # sizes and parameters feed nothing
            continue
        if isinstance(row.layer, (MTNeuron, Encoder)) or row.node.op == "placeholder":
            if str(row.node.target) not in names:
                names.append(str(row.node.target))
        else:
            stack.extend(reversed(row.node.all_input_nodes))
    return tuple(names)


def _follows_its_weights(operations: Operations, norm: Operation) -> bool:
    """Whether a batch norm is a factor of weights: of a layer before it that nobody else reads."""
    if len(norm.inputs) != 1:
        return False
    (node,) = norm.inputs
    while operations[node].kind is OperatorKind.MOVE and len(node.users) == 1:
        node, *others = operations[node].inputs
        if others:
            return False
    row = operations[node]
    if row.kind is not OperatorKind.WEIGHTED or len(node.users) > 1 or row.layer is None:
        return False
    assert isinstance(norm.layer, NORMS)
    channels = getattr(row.layer, "out_channels", getattr(row.layer, "out_features", None))
    return bool(channels == norm.layer.num_features)


def _reaches_neurons_alone(operations: Operations, norm: Operation) -> bool:
    """Whether only neurons, or the network's end, read a batch norm, through sums and affines."""
    for user in map(operations.__getitem__, norm.node.users):
        if user.node.op == "output" or user.kind in (OperatorKind.NEURON, OperatorKind.SIZE):
            continue
        passes = user.kind in (OperatorKind.AFFINE, OperatorKind.LINEAR, OperatorKind.MOVE)
        if not passes or not _reaches_neurons_alone(operations, user):
            return False
    return True
