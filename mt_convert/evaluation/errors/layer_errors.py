"""Conversion error by cause, layer by layer: many n and T in one pass over the images.

For every layer of neurons a − m = (a − c) + (c − q) + (q − m), clipping + quantization +
unevenness (invariant 8), in the three views of `rows.VIEWS`; there are the definitions of
all that is counted. Only sums are kept: memory does not grow with the number of images, nor with T.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import Fault, SpecError
from ...graph.float32 import in_float32
from ...graph.image_batches import labelled_batches
from ...neurons.ladder import PowerOfTwo
from ...neurons.layer import MTNeuron
from ...neurons.totals import count_events
from ...spiking.interpreter import Activation, forward_with
from ...spiking.levels import (
    analog,
    even_response,
    input_unit,
    ladder_at,
    level_at,
    quantized_activation,
    worth,
)
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import step_counts
from ...spiking.simulate import FloatArithmetic, simulate
from .rows import VIEWS, WHOLE, ErrorRow, LogitRow, RateRow
from .sums import AnswerCounts, Answers, CauseSums, LayerBatch, SpikeCounts
from .table import ErrorTable

Networks = Mapping[int, SpikingModel] | Sequence[tuple[int, SpikingModel]]


@torch.no_grad()
@in_float32()
def layer_errors(
    networks: Networks,
    batches: Any,
    *,
    time_steps: Sequence[int],
    reference: SpikingModel | None = None,
    ann: nn.Module | None = None,
) -> ErrorTable:
    """Measure the errors of converted networks by cause, each network under its n.

    ``reference`` is the network as converted, before calibration moved its thresholds: its neurons
    give a, c and q; by default each network is its own. Each network is simulated once for the
    largest number of steps, which shows the smaller ones too, unless its layers wait for their
    whole window: then once for each. ``ann`` adds its agreement, labels add accuracies.

    Shapes:
        batches of images [batch, channels, height, width], or pairs of these and labels [batch]: a
        tensor, a pair, a list or generator of these, a DataLoader, a data set.
    Raises:
        SpecError: no images, steps below 1, an n twice, a reference with other layers, or
            activations that overflow where no quantizer bounds them.
        DataError: images of another shape, or with NaN.

    Example:
        >>> from ...spiking.convert import convert
        >>> from ...neurons.ladder import Uniform
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> qann = quantize(net, QuantSpec(act_bits=4), calibration=images)
        >>> networks = {n: convert(qann, ladder=Uniform(n), signed=True) for n in (3, 15)}
        >>> table = layer_errors(networks, [images], time_steps=(1, 5), ann=net)
        >>> table.settings, table.layers
        ([(3, 1), (3, 5), (15, 1), (15, 5)], ['1'])
        >>> table.error("1", "propagated", 15, 1).unevenness.maximum
        0.0
    """
    steps = step_counts(time_steps)
    pairs = _pairs(networks)
    _check(pairs, reference)
    sums = [_NetworkSums(snn, reference or snn, steps) for _, snn in pairs]
    seen, every_label = 0, True
    if ann is not None:
        ann.eval()
    shape = pairs[0][1].image_shape
    for images, labels in labelled_batches(batches, image_shape=shape, required=False):
        if len(images) == 0:
            continue
        seen, every_label = seen + len(images), every_label and labels is not None
        originals = _Originals(labels, None if ann is None else ann(images))
        shared = None if reference is None else _run_reference(reference, images)
        for network in sums:
            network.run(images, shared or _run_reference(network.reference, images), originals)
    if seen == 0:
        raise SpecError("no images to measure errors on: give at least one batch that is not empty")
    errors: list[ErrorRow] = []
    rates: list[RateRow] = []
    logits: list[LogitRow] = []
    for (n, _), network in zip(pairs, sums, strict=True):
        for T in steps:
            errors += network.error_rows(n, T)
            rates += network.rate_rows(n, T, seen)
            logits.append(network.answers[T].row(n, T, every_label))
    _check_finite(errors)
    return ErrorTable(seen, tuple(errors), tuple(rates), tuple(logits))


def _check_finite(rows: Sequence[ErrorRow]) -> None:
    """Raise where activations overflow without quantizers: nothing is a share of them."""
    layers = dict.fromkeys(row.layer for row in rows if not math.isfinite(row.power))
    if layers:
        first = next(iter(layers))
        hint = "its weights let activations grow from layer to layer: train it, or look at them"
        fault = Fault(first, f"activations overflow, here and in {len(layers) - 1} more", hint)
        headline = "errors cannot be measured: without quantizers the network overflows"
        raise SpecError(headline, [fault])


def clip_to_quantizer(neuron: MTNeuron, x: Tensor) -> Tensor:
    """The analog activation clipped to what the neuron's quantizer can give: [lo s, hi s].

    Example:
        >>> from ...neurons.ladder import Uniform
        >>> from ...neurons.spec import NeuronSpec
        >>> neuron = MTNeuron(NeuronSpec(Uniform(3), bounds=(0, 3)), torch.tensor(0.5))
        >>> x = torch.tensor([-1.0, 0.7, 9.0])
        >>> clip_to_quantizer(neuron, x).tolist() == [0, torch.tensor(0.7), 1.5]
        True
    """
    low, high = neuron.spec.limits
    return analog(neuron, x).clamp(low * neuron.delta, high * neuron.delta)


def _pairs(networks: Any) -> list[tuple[int, SpikingModel]]:
    """Each n with its network; what is none is refused."""
    if isinstance(networks, SpikingModel):
        raise SpecError("networks is a SpikingModel: pass {n: snn}, n being what rows call it")
    pairs = [*networks.items()] if isinstance(networks, Mapping) else [*networks]
    return [(n, spiking_network(snn, "layer_errors")) for n, snn in pairs]


def _check(pairs: Sequence[tuple[int, SpikingModel]], reference: SpikingModel | None) -> None:
    """Each n once, and layers of the same names as the reference's."""
    thresholds = [n for n, _ in pairs]
    if not thresholds or len(set(thresholds)) < len(thresholds):
        raise SpecError(f"networks for n = {thresholds}: allowed are one or more, each n once")
    if reference is None:
        return
    names = {name for name, _ in reference.neurons()}
    faults = [
        Fault(f"n = {n}", f"layers {sorted(names ^ own)} are in one of them alone", "same graph")
        for n, snn in pairs
        if (own := {name for name, _ in snn.neurons()}) != names
    ]
    if faults:
        raise SpecError("the reference is a conversion of another network", faults)


# ------------------------------------------------------------------------- what is to be compared


@dataclass(frozen=True)
class _Originals:
    """The labels of a batch, and the float network's logits."""

    labels: Tensor | None
    ann: Tensor | None


@dataclass(frozen=True)
class _Expected:
    """The reference on one batch: the input of each layer of the quantized network, and each
    layer's activation in the analog, the clipped and the quantized network."""

    inputs: dict[str, Tensor]
    activations: tuple[dict[str, Tensor], ...]
    logits: Tensor


_ACTIVATIONS = (analog, clip_to_quantizer, quantized_activation)


def _run_reference(reference: SpikingModel, images: Tensor) -> _Expected:
    """Run the reference three times."""
    inputs: dict[str, Tensor] = {}

    def record(
        function: Callable[[MTNeuron, Tensor], Tensor], kept: dict[str, Tensor]
    ) -> Activation:
        def neuron(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
            inputs[name] = x  # those of the last pass, the quantized one, stay
            kept[name] = function(layer, x)
            return kept[name]

        return neuron

    activations: list[dict[str, Tensor]] = []
    for function in _ACTIVATIONS:
        activations.append({})
        logits = forward_with(reference, images, record(function, activations[-1]))
    return _Expected(inputs, tuple(activations), logits)


class _Listening(FloatArithmetic):
    """Float arithmetic that keeps the value which has arrived at the layer that fires next."""

    arrived: Tensor | None = None

    def drive(self, value: Tensor, step: Tensor) -> Tensor:
        self.arrived = value
        return super().drive(value, step)


# -------------------------------------------------------------------------------------- measuring


class _NetworkSums:
    """All sums of one network."""

    def __init__(self, snn: SpikingModel, reference: SpikingModel, steps: Sequence[int]) -> None:
        self.snn, self.reference, self.steps = snn, reference, steps
        self.neurons = dict(snn.neurons())
        self.quantizers = dict(reference.neurons())
        self.causes: dict[tuple[str, str, int], CauseSums] = defaultdict(CauseSums)
        self.counts: dict[tuple[str, int], SpikeCounts] = defaultdict(SpikeCounts)
        self.answers = {T: AnswerCounts() for T in steps}

    def run(self, images: Tensor, expected: _Expected, originals: _Originals) -> None:
        """Simulate one batch and add what it shows."""
        runs = [[T] for T in self.steps] if self.snn.whole_window else [self.steps]
        for steps in runs:
            watch = _Watch(self, expected, steps)
            run = simulate(
                self.snn,
                images,
                time_steps=steps[-1],
                observe=watch.observe,
                observe_pairs=watch.observe_pairs,
                arithmetic=watch.arithmetic,
            )
            for T in steps:
                answers = Answers(
                    run.logits[T - 1], expected.logits, originals.ann, originals.labels
                )
                self.answers[T].add(answers)

    def error_rows(self, n: int, T: int) -> Iterator[ErrorRow]:
        """Each layer in each view, then the network."""
        for view in VIEWS:
            whole = CauseSums()
            for layer in self.neurons:
                whole.join(self.causes[view, layer, T])
                yield self.causes[view, layer, T].row(layer, view, n, T)
            if self.neurons:
                yield whole.row(WHOLE, view, n, T)

    def rate_rows(self, n: int, T: int, images: int) -> Iterator[RateRow]:
        """Each layer, then the network."""
        whole = SpikeCounts()
        for layer in self.neurons:
            whole.join(self.counts[layer, T])
            yield self.counts[layer, T].row(layer, n, T, images)
        if self.neurons:
            yield whole.row(WHOLE, n, T, images)


class _Watch:
    """One simulation of one batch, seen from its layers of neurons."""

    def __init__(self, sums: _NetworkSums, expected: _Expected, steps: Sequence[int]) -> None:
        self.sums, self.expected, self.steps = sums, expected, frozenset(steps)
        self.presentation = sums.snn.presentation
        self.arithmetic = _Listening()
        self.arrived: dict[str, Tensor] = {}
        self.events: dict[str, Tensor] = {}
        self.pairs: dict[str, Tensor] = {}
        self.negative: dict[str, float] = {}

    def observe(self, t: int, name: str, totals: Tensor, emitted: Tensor) -> None:
        """Count what a layer has fired; behind the steps that are asked for, measure it."""
        spec = self.sums.neurons[name].spec
        ladder = ladder_at(spec.ladder, t)
        events = count_events(emitted, ladder)
        if name in self.pairs:
            events = events + self.pairs.pop(name)
        self.events[name] = self.events[name] + events if name in self.events else events
        if spec.signed:
            down = count_events(emitted.clamp(max=0), ladder).sum(dtype=torch.float64)
            self.negative[name] = self.negative.get(name, 0.0) + float(down)
        if self.arithmetic.arrived is not None:  # a network at rest is not driven again
            self.arrived[name], self.arithmetic.arrived = self.arithmetic.arrived, None
        if t + 1 in self.steps:
            self._compare(t, name, totals)
            self._count(t, name, totals)

    def observe_pairs(self, t: int, name: str, pairs: Tensor) -> None:
        """Thresholds of a function that were crossed up and down."""
        self.pairs[name] = pairs

    def _compare(self, t: int, name: str, totals: Tensor) -> None:
        """The layer's errors by cause, in each view."""
        neuron, quantizer = self.sums.neurons[name], self.sums.quantizers[name]
        expected, emitted = self.expected, totals * worth(neuron, self.presentation, t)
        x, arrived = expected.inputs[name], self.arrived[name]
        even = even_response(neuron, x, self.presentation, t + 1)
        views = {
            "forced": (*(function(quantizer, x) for function in _ACTIVATIONS), even),
            "arrived": (*(function(quantizer, arrived) for function in _ACTIVATIONS), emitted),
            "propagated": (*(activations[name] for activations in expected.activations), emitted),
        }
        for view, (a, c, q, m) in views.items():
            self.sums.causes[view, name, t + 1].add(a, c, q, m)

    def _count(self, t: int, name: str, totals: Tensor) -> None:
        """What the layer's neurons have fired, and the potential that is left in them."""
        neuron = self.sums.neurons[name]
        ladder = neuron.spec.ladder
        charge = self.arrived[name] / input_unit(neuron, self.presentation, t)
        charge = level_at(neuron, self.presentation, t, charge) + neuron.spec.initial
        if neuron.offset is not None:
            charge = charge + neuron.offset
        firing = LayerBatch(
            quantized=self.expected.activations[-1][name],
            totals=totals,
            residual=charge - totals,
            events=self.events[name],
            negative=self.negative.get(name, 0.0),
            most=(t + 1) * (1 if isinstance(ladder, PowerOfTwo) else ladder.n),
        )
        self.sums.counts[name, t + 1].add(firing)
