"""`verify`: does a conversion compute what the quantized network computes? On a probe batch.

At T = 1 with as many thresholds as levels every neuron and the logits must be bit-equal
(invariant 1) in closed form; threshold by threshold so must all neurons of a layer, or of more than
`SAMPLE` as many, at least `SHARE` of them, or all where asked for. Every layer of neurons must be
on inputs within 4 ulp of its thresholds, where roundings show, each threshold of each channel at
least once, in both kinds of firing. With a quarter of the thresholds (a signed layer's range needs
two steps of it, an unsigned one's four) signed neurons must come to rest on the same numbers
(invariants 6 and 7). Learned thresholds fire in parallel alone, and all of them are kept. Where
layers speak in digits, whole windows must give the same numbers, and the neuron with one fixed
threshold the same digits (invariant 14).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import SpecError
from ..graph.nodes import layer_nodes
from ..neurons.ladder import Firing, Ladder, Learned, Uniform
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..neurons.step_table import StepTable
from ..neurons.totals import literal_from_rest, totals_step
from ..quantization.activations.quant_act import QuantAct
from ..quantization.quantize import QuantizedModel, levels_of
from .conversion_report import Verdict, WindowVerdict
from .model import SpikingModel
from .simulate import FloatArithmetic, Run, simulate
from .single_spikes.spike_by_spike import spike_by_spike

PROBE_IMAGES = 4
SETTLING_STEPS = 32
ULPS = 4
SAMPLE, SHARE = 100_000, 0.05  # of a layer's neurons, fired threshold by threshold
SAMPLED, ALL = "sample", "all"


class Build(Protocol):
    """Converts the network under test."""

    def __call__(
        self, ladder: Mapping[str, Ladder] | None, firing: Firing | None, signed: bool
    ) -> SpikingModel: ...


def random_images(image_shape: tuple[int, ...]) -> Tensor:
    """A seeded probe batch: normal numbers, as normalised images are.

    Example:
        >>> random_images((3, 8, 8)).shape
        torch.Size([4, 3, 8, 8])
    """
    return torch.randn(PROBE_IMAGES, *image_shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def verify(
    qann: QuantizedModel,
    build: Build,
    images: Tensor,
    time_steps: int = SETTLING_STEPS,
    *,
    snn: SpikingModel | None = None,
    literal: str = SAMPLED,
) -> Verdict:
    """Compare a quantized network and its conversions on a probe batch; of ``snn``, where it
    speaks in digits, the windows too. ``literal`` "all" fires every neuron threshold by threshold.

    Shapes:
        images [batch, channels, height, width], normalised as in training.
    Raises:
        DataError: images of another shape or with NaN.
        SpecError: ``literal`` is neither "sample" nor "all".
    """
    if literal not in (SAMPLED, ALL):
        raise SpecError(f"literal is {literal!r}: allowed are {SAMPLED}, {ALL}")
    qann.eval()
    with levels_of(qann) as expected:
        logits = qann(images)
    exact = build(None, None, False)
    sample = _Sample(exact, expected)
    run = simulate(exact, images, time_steps=1, observe=sample.observe, arithmetic=sample)
    differs = _differences(run, expected, logits) | sample.wrong
    equal = _equal_steps(qann)
    learned = any(layer.learned_ladder for _, layer in layer_nodes(qann.layers, QuantAct))
    if literal == ALL:
        for firing in [Firing.PARALLEL] if learned else Firing:  # each holds all weights
            other = simulate(build(None, firing, False), images, time_steps=1, literal=True)
            differs |= _differences(other, expected, logits)
    tried, wrong = _adversarial(qann, exact, expected)
    differs |= wrong
    window = _window(snn, images, expected, logits)
    thresholds = -(-qann.spec.levels // 4) if equal else qann.spec.levels
    few = build(dict.fromkeys(equal, Uniform(thresholds)), None, True)
    return Verdict(
        exact_t1=not differs,
        settling_t=_settling(few, images, expected, logits, time_steps),
        thresholds=thresholds,
        time_steps=time_steps,
        images=len(images),
        neurons=sum(layer.numel() for layer in expected.values()) // max(1, len(images)),
        adversarial=tried,
        differs=tuple(sorted(differs)),
        window=window,
    )


def _equal_steps(qann: QuantizedModel) -> list[str]:
    """The layers whose number of thresholds is free, for their steps are equal."""
    return [
        str(node.target)
        for node, layer in layer_nodes(qann.layers, QuantAct)
        if layer.learned_ladder is None and not layer.encodes_input
    ]


class _Sample(FloatArithmetic):
    """Fires some neurons of each layer threshold by threshold, on what arrives in a run."""

    def __init__(self, snn: SpikingModel, expected: dict[str, Tensor]) -> None:
        self.neurons, self.expected = dict(snn.neurons()), expected
        self.arrived: Tensor | None = None
        self.wrong: set[str] = set()

    def drive(self, value: Tensor, step: Tensor) -> Tensor:
        self.arrived = super().drive(value, step)
        return self.arrived

    def observe(self, t: int, name: str, totals: Tensor, emitted: Tensor) -> None:
        """One layer of neurons, behind its step."""
        assert self.arrived is not None
        table, level = self.neurons[name].table, self.expected[name].flatten()
        each = table is not None and len(table.start) > 1
        y = (table.literal(self.arrived) if table and each else self.arrived).flatten()
        if (count := sample_size(len(y))) < len(y):
            generator = torch.Generator().manual_seed(len(y))
            picked = torch.randint(len(y), (count,), generator=generator).to(y.device)
            y, level = y[picked], level[picked]
        if table is not None and not each:
            y = table.literal(y)
        if _differ(literal_from_rest(y, self.neurons[name].spec), level):
            self.wrong.add(name)


def sample_size(neurons: int) -> int:
    """How many of a layer's neurons are fired threshold by threshold.

    Example:
        >>> sample_size(1000), sample_size(1_000_000), sample_size(10_000_000)
        (1000, 100000, 500000)
    """
    return min(neurons, max(SAMPLE, math.ceil(SHARE * neurons)))


def _differences(run: Run, expected: dict[str, Tensor], logits: Tensor) -> set[str]:
    """The layers that are not bit-equal behind the last step, and the logits."""
    wrong = {name for name in expected if _differ(run.totals[name], expected[name])}
    return wrong | ({"logits"} if _differ(run.logits[-1], logits) else set())


def _window(
    snn: SpikingModel | None, images: Tensor, expected: dict[str, Tensor], logits: Tensor
) -> WindowVerdict | None:
    """Whole windows of digits against the quantized network; on the first image also how many
    neurons differ where membranes add up digits, which rounds otherwise."""
    if snn is None or snn.report.latency is None or snn.report.latency.steps is None:
        return None
    steps = snn.report.latency.steps
    run = simulate(snn, images, time_steps=steps)
    differs = _differences(run, expected, logits)
    share, reason = None, ""
    try:
        spikes = spike_by_spike(snn, images[:1], time_steps=steps)
    except SpecError as fault:
        reason = str(fault)
    else:
        one = simulate(snn, images[:1], time_steps=steps).totals
        other = sum(int((spikes.totals[name] != total).sum()) for name, total in one.items())
        share = other / max(1, sum(total.numel() for total in one.values()))
    return WindowVerdict(steps, not differs, share, reason, tuple(sorted(differs)))


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are not bit-equal; a value that is not a number equals nothing."""
    return not torch.equal(first, second)


def _settling(
    snn: SpikingModel,
    images: Tensor,
    expected: dict[str, Tensor],
    logits: Tensor,
    time_steps: int,
) -> int | None:
    """The first step from which on all totals and the logits are the quantized network's."""
    wrong = [False] * time_steps

    def compare(t: int, name: str, totals: Tensor, emitted: Tensor) -> None:
        wrong[t] = wrong[t] or _differ(totals, expected[name])

    run = simulate(snn, images, time_steps=time_steps, observe=compare)
    wrong = [bad or _differ(run.logits[t], logits) for t, bad in enumerate(wrong)]
    last = max((t for t, bad in enumerate(wrong) if bad), default=-1)
    return last + 2 if last + 1 < time_steps else None


def _adversarial(
    qann: QuantizedModel, snn: SpikingModel, expected: dict[str, Tensor]
) -> tuple[int, set[str]]:
    """How many inputs next to thresholds were tried, and the layers that are wrong on any."""
    quantizers: dict[str, QuantAct] = {
        str(node.target): layer for node, layer in layer_nodes(qann.layers, QuantAct)
    }
    tried, wrong = 0, set()
    for name, neuron in snn.neurons():
        inputs = next_to_thresholds(neuron)
        if neuron.table is not None:
            tried += inputs.numel()
            if _differs_from_function(quantizers[name], neuron, inputs):
                wrong.add(f"{name} (within {ULPS} ulp of a threshold)")
            continue
        step, channels = neuron.delta.detach(), _channels(expected[name])
        each = inputs.unflatten(0, (2 * ULPS + 1, -1))
        turn = torch.arange(channels, device=inputs.device)[:, None]
        turn = (turn + torch.arange(each.shape[1], device=inputs.device)) % len(each)
        spread = each.gather(0, turn)  # [channels, thresholds], now on this side, now on that
        tried += len(inputs) + spread.numel()
        cascade = _in_cascade(neuron.spec)
        for x, specs in ((inputs, (neuron.spec, cascade)), (spread, (neuron.spec,))):
            level, y = torch.round(quantizers[name](x) / step), x / step
            found = [totals_step(y, torch.zeros_like(y), neuron.spec)]
            found += [literal_from_rest(y, spec) for spec in specs]
            if any(_differ(one, level) for one in found):
                wrong.add(f"{name} (within {ULPS} ulp of a threshold)")
    return tried, wrong


def _differs_from_function(quantizer: QuantAct, neuron: MTNeuron, x: Tensor) -> bool:
    """Whether the thresholds of a function are not its levels, as its quantizer and as float64
    have them, in any way of firing."""
    assert neuron.table is not None
    assert quantizer.formula is not None
    step, (low, high) = neuron.delta.detach(), neuron.spec.limits
    level, y = torch.round(quantizer(x) / step), neuron.table(x)
    literal = neuron.table.literal(x)
    found = [totals_step(y, torch.zeros_like(y), neuron.spec)]
    found += [literal_from_rest(literal, spec) for spec in (neuron.spec, _in_cascade(neuron.spec))]
    definition = quantizer.formula.levels(x, float(step), (int(low), int(high)))
    return any(_differ(one, level) for one in (*found, definition.to(level)))


def _in_cascade(spec: NeuronSpec) -> NeuronSpec:
    """The neuron in a cascade, where its ladder has one that emits the same."""
    return replace(spec, firing=Firing.CASCADE) if isinstance(spec.ladder, Uniform) else spec


def _channels(levels: Tensor) -> int:
    """Channels of a layer's output, one where it has no axis for them."""
    return levels.shape[1] if levels.dim() > 1 else 1


def next_to_thresholds(neuron: MTNeuron) -> Tensor:
    """Inputs of a layer of neurons 0 to 4 ulp around each of its thresholds, in its own units.

    Shapes: [thresholds * 9].

    Example:
        >>> from ..neurons.spec import NeuronSpec
        >>> neuron = MTNeuron(NeuronSpec(Uniform(3), bounds=(0, 3)), torch.tensor(0.5))
        >>> next_to_thresholds(neuron).unique().numel(), float(next_to_thresholds(neuron).min())
        (27, 0.24999994039535522)
    """
    ladder = neuron.spec.ladder
    if neuron.table is not None:
        return _around_table(neuron.table)
    low, high = neuron.spec.bounds or (0, ladder.reach)
    if isinstance(ladder, Learned):
        edges = torch.tensor(ladder.thresholds, device=neuron.delta.device)
    else:
        edges = torch.arange((low or 0) + 1, (high or 0) + 1, device=neuron.delta.device) - 0.5
    return torch.cat(_around(edges * neuron.delta.detach()))


def _around(edges: Tensor) -> list[Tensor]:
    """Numbers, and those up to `ULPS` below and above."""
    below = above = edges
    around = [edges]
    for _ in range(ULPS):
        below = torch.nextafter(below, torch.full_like(below, float("-inf")))
        above = torch.nextafter(above, torch.full_like(above, float("inf")))
        around += [below, above]
    return around


def _around_table(table: StepTable) -> Tensor:
    """Inputs next to the thresholds of a function, [9 n], of many channels [9 n, C, 1 …]."""
    real = table.thresholds.where(table.weights != 0, torch.zeros_like(table.thresholds))
    around = torch.cat(_around(real.T))
    if len(table.start) == 1:
        return around[:, 0]
    return around.reshape(*around.shape, *[1] * (-1 - table.axis))
