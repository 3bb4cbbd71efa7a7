"""`verify`: does a conversion compute what the quantized network computes? On a probe batch.

At T = 1 with as many thresholds as levels every neuron and the logits must be bit-equal
(invariant 1), in both kinds of firing, threshold by threshold and in closed form; so must every
layer of neurons on inputs within 4 ulp of its thresholds, where roundings show; and with a quarter
of the thresholds (a signed layer's range needs two steps of it, an unsigned one's four) signed
neurons must come to rest on the same numbers (invariants 6 and 7). Learned thresholds fire in
parallel alone, and all of them are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..graph.nodes import layer_nodes
from ..neurons.ladder import Firing, Ladder, Learned, Uniform
from ..neurons.layer import MTNeuron
from ..neurons.totals import totals_step, totals_step_literal
from ..quantization.brevitas_layers import QuantAct
from ..quantization.quantize import QuantizedModel, levels_of
from .conversion_report import Verdict
from .model import SpikingModel
from .simulate import simulate

PROBE_IMAGES = 4
SETTLING_STEPS = 32
ULPS = 4


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
    qann: QuantizedModel, build: Build, images: Tensor, time_steps: int = SETTLING_STEPS
) -> Verdict:
    """Compare a quantized network and its conversions on a probe batch.

    Shapes:
        images [batch, channels, height, width], normalised as in training.
    Raises:
        DataError: images of another shape or with NaN.
    """
    qann.eval()
    with levels_of(qann) as expected:
        logits = qann(images)
    differs: set[str] = set()
    tried = 0
    equal = _equal_steps(qann)
    learned = any(layer.learned_ladder for _, layer in layer_nodes(qann.layers, QuantAct))
    for firing in [Firing.PARALLEL] if learned else Firing:  # one at a time: each holds all weights
        snn = build(None, firing, False)
        for literal in (False, True):
            run = simulate(snn, images, time_steps=1, literal=literal)
            differs |= {name for name in expected if _differ(run.totals[name], expected[name])}
            if _differ(run.logits[0], logits):
                differs.add("logits")
        tried, wrong = _adversarial(qann, snn)
        differs |= wrong
        del snn
    exact = not differs
    thresholds = -(-qann.spec.levels // 4) if equal else qann.spec.levels
    few = build(dict.fromkeys(equal, Uniform(thresholds)), None, True)
    return Verdict(
        exact_t1=exact,
        settling_t=_settling(few, images, expected, logits, time_steps),
        thresholds=thresholds,
        time_steps=time_steps,
        images=len(images),
        neurons=sum(layer.numel() for layer in expected.values()) // max(1, len(images)),
        adversarial=tried,
        differs=tuple(sorted(differs)),
    )


def _equal_steps(qann: QuantizedModel) -> list[str]:
    """The layers whose number of thresholds is free, for their steps are equal."""
    return [
        str(node.target)
        for node, layer in layer_nodes(qann.layers, QuantAct)
        if layer.learned_ladder is None and not layer.encodes_input
    ]


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


def _adversarial(qann: QuantizedModel, snn: SpikingModel) -> tuple[int, set[str]]:
    """How many inputs next to thresholds were tried, and the layers that are wrong on any."""
    quantizers: dict[str, QuantAct] = {
        str(node.target): layer for node, layer in layer_nodes(qann.layers, QuantAct)
    }
    tried, wrong = 0, set()
    for name, neuron in snn.neurons():
        inputs = next_to_thresholds(neuron)
        step = neuron.delta.detach()
        expected = torch.round(quantizers[name](inputs) / step)
        rest = torch.zeros_like(inputs)
        tried += len(inputs)
        for advance in (totals_step, totals_step_literal):
            if _differ(advance(inputs / step, rest, neuron.spec), expected):
                wrong.add(f"{name} (within {ULPS} ulp of a threshold)")
    return tried, wrong


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
    low, high = neuron.spec.bounds or (0, ladder.reach)
    if isinstance(ladder, Learned):
        edges = torch.tensor(ladder.thresholds, device=neuron.delta.device)
    else:
        edges = torch.arange((low or 0) + 1, (high or 0) + 1, device=neuron.delta.device) - 0.5
    below = above = edges * neuron.delta.detach()
    around = [below]
    for _ in range(ULPS):
        below = torch.nextafter(below, torch.full_like(below, float("-inf")))
        above = torch.nextafter(above, torch.full_like(above, float("inf")))
        around += [below, above]
    return torch.cat(around)
