"""Initial potentials that make what neurons emit on average what the quantized network gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..neurons.layer import MTNeuron
from ..spiking.levels import fixed_thresholds, unit, worth
from ..spiking.model import SpikingModel
from .layer_results import Passed, report_rows
from .lockstep import Lockstep, emissions, with_offset
from .report import CalibrationRow
from .samples import Samples, batches
from .spec import MembraneMean, Per
from .text import name_of

LOSS = "mean difference"
MOST = 0.5
_LEAST_RATE = 1 / 16


@torch.no_grad()
def transform(
    step: MembraneMean, snn: SpikingModel, samples: Samples, keep_better: bool
) -> tuple[SpikingModel, list[CalibrationRow]]:
    """The network with corrected initial potentials, and each layer's loss before and after.

    One layer after the other, on what the corrected layers before really emit: v0 grows by
    (mean q − mean m) of the images to fit, in thresholds of one step, so by (mean q − mean m) T/Δ
    where images are presented in every step and by (mean q − mean m)/s where once; q is the
    quantized activation, m what the neuron has emitted. A round that does not lower the loss is
    taken back and the rate halved. The offset stays within ±½, so v0 between 0 and one threshold:
    no neuron fires without input or waits for more than one threshold. Signed neurons keep to
    that too: theirs compare totals, so that an offset moves both directions alike.

    The loss is Σ|mean q − mean m| / Σ|mean q| over channels (or neurons) on held-out images; the
    round where it is lowest is kept, with ``keep_better`` the start being one of them. The last row
    compares the means over layers of the whole network; if that rose, nothing is kept.

    Source: dual-phase optimisation (arXiv 2205.07473), phase II, its membrane correction.
    """
    per_neuron = step.per is Per.NEURON
    at_start = _pass(snn, samples, per_neuron, lambda layer: layer.start(held_out=True))
    candidate = snn.with_neurons({})
    passed = _pass(
        candidate, samples, per_neuron, lambda layer: _best(layer, step.rounds, keep_better)
    )
    rows = report_rows(name_of([step]), at_start, passed, keep_better)
    return (candidate if rows[-1].kept else snn.with_neurons({})), rows


def _pass(
    snn: SpikingModel,
    samples: Samples,
    per_neuron: bool,
    choose: Callable[[_Layer], tuple[Tensor | None, float]],
) -> list[Passed]:
    """Go through the layers in order and give each, in place, the offset that is chosen for it."""
    fit, held_out = list(batches(samples.fit)), list(batches(samples.held_out))
    front = Lockstep(snn, samples.reference, [*fit, *held_out], samples.time_steps)
    passed = []
    for node in front.nodes:
        layer = _Layer.at(front, node, len(fit), per_neuron)
        if fixed_thresholds(layer.neuron):
            passed.append(Passed(str(node.target)))
        else:
            old, before = layer.start(held_out=True)
            offset, after = choose(layer)
            if offset is not old:
                new = with_offset(layer.neuron, offset)
                snn.layers.set_submodule(str(node.target), new)
            passed.append(Passed(str(node.target), LOSS, before, after, offset is not old))
        front.pass_on(node, layer.targets, layer.drives)
    return passed


@dataclass(frozen=True)
class _Layer:
    """One layer with its input and its target on all batches, those to fit first."""

    front: Lockstep
    node: fx.Node
    neuron: MTNeuron
    drives: list[list[Tensor]]
    targets: list[Tensor]
    fit: int
    axes: list[int]

    @classmethod
    def at(cls, front: Lockstep, node: fx.Node, fit: int, per_neuron: bool) -> _Layer:
        every = range(len(front.batches))
        targets = [front.target(node, k) for k in every]
        drives = [front.drives(node, k) for k in every]
        axes = front.feature_axes(node, targets[0].dim(), per_neuron)
        return cls(front, node, front.neuron(node), drives, targets, fit, axes)

    def gap(self, offset: Tensor | None, held_out: bool) -> tuple[Tensor, Tensor]:
        """Mean q − mean m with an offset, and mean q."""
        chosen = slice(self.fit, None) if held_out else slice(0, self.fit)
        neuron, presentation = with_offset(self.neuron, offset), self.front.snn.presentation
        last = worth(neuron, presentation, self.front.time_steps - 1)
        emitted = [emissions(neuron, item, presentation)[-1] * last for item in self.drives[chosen]]
        expected = _mean(self.targets[chosen], self.axes)
        return expected - _mean(emitted, self.axes), expected

    def start(self, held_out: bool) -> tuple[Tensor | None, float]:
        """The offset that the neuron has, and its loss."""
        return self.neuron.offset, self.loss(self.neuron.offset, held_out)

    def loss(self, offset: Tensor | None, held_out: bool) -> float:
        """Σ|mean q − mean m| / Σ|mean q|."""
        return _relative(*self.gap(offset, held_out))


def _relative(gap: Tensor, expected: Tensor) -> float:
    """The sum of sizes, as a share of that of the expected means."""
    size = float(expected.abs().sum())
    return float(gap.abs().sum()) / (size if size > 0 else 1.0)


def _best(layer: _Layer, rounds: int, keep_better: bool) -> tuple[Tensor | None, float]:
    """The offset of the round with the lowest held-out loss, and that loss."""
    one = unit(layer.neuron, layer.front.snn.presentation, layer.front.time_steps - 1)
    offset, rate = layer.neuron.offset, 1.0
    gap, expected = layer.gap(offset, held_out=False)
    best, lowest = layer.start(held_out=True)
    if not keep_better:
        lowest = math.inf
    for _ in range(rounds):
        moved = rate * gap.to(one.dtype) / one + (0 if offset is None else offset)
        moved = moved.clamp(-MOST, MOST)
        new, _ = layer.gap(moved, held_out=False)
        if _relative(new, expected) < _relative(gap, expected):
            offset, gap = moved, new
            loss = layer.loss(offset, held_out=True)
            if loss < lowest:
                best, lowest = offset, loss
        else:
            rate /= 2
            if rate < _LEAST_RATE:
                break
    return best, layer.loss(best, held_out=True) if math.isinf(lowest) else lowest


def _mean(tensors: Sequence[Tensor], axes: list[int]) -> Tensor:
    """The mean over batches and axes, without the first axis."""
    total = torch.stack([item.sum(axes, keepdim=True, dtype=torch.float64) for item in tensors])
    count = sum(item.numel() for item in tensors) / max(1, total[0].numel())
    return total.sum(0)[0] / max(1.0, count)
