"""Calibrations that choose what each layer has one of: its thresholds' size, what its spikes carry,
its initial potential.

All are judged by one loss: the mean square of what is missing between the quantized network's
activation and what the layer emits of the same input, coming evenly over T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpecError
from ..neurons.layer import MTNeuron
from ..spiking.levels import analog, fixed_thresholds, levels, quantized_activation, unit
from ..spiking.model import SpikingModel
from ..spiking.presentation import Presentation
from .gaussian import gaussian_theta
from .lockstep import Lockstep
from .report import CalibrationRow
from .samples import Samples, batches, sizes
from .search import Window, alpha_beta, best_theta, midpoints
from .spec import (
    Calibration,
    Gaussian,
    InitialPotential,
    Maximum,
    MeanSquaredError,
    Percentile,
    PercentileAlphaBeta,
)
from .text import name_of

LOSS = "mean square"
NOTHING = "theta would be 0"
_MOST_PASSES = 1024  # images times steps: a maximum needs no more


@dataclass(frozen=True)
class _Layer:
    """One layer of neurons as it is, what it stands for, and what it gets."""

    name: str
    neuron: MTNeuron
    samples: Samples

    @property
    def window(self) -> Window:
        """How it is run."""
        return Window(self.samples.presentation, self.samples.time_steps)

    @property
    def reference(self) -> MTNeuron:
        """The layer before any calibration."""
        return self.samples.reference.layers.get_submodule(self.name)  # type: ignore[return-value]

    @property
    def x(self) -> Tensor:
        """Its inputs on the images to fit."""
        return self.samples.inputs(held_out=False)[self.name]

    def loss(self, neuron: MTNeuron) -> float:
        """The loss on held-out images with these neurons."""
        x = self.samples.inputs(held_out=True)[self.name]
        missed = quantized_activation(self.reference, x) - self.window.response(neuron, x)
        return float(missed.double().square().mean())


Chosen = MTNeuron | str
"""The neurons found for a layer, or why it is left alone."""


def initial_potential(step: InitialPotential, layer: _Layer) -> Chosen:
    """v0 for all neurons; offsets that were there before are gone."""
    neuron, moved = layer.neuron, step.v0 - layer.neuron.spec.initial
    offset = torch.full_like(neuron.delta.detach(), moved) if moved else None
    return neuron.with_(offset=offset)


def percentile(step: Percentile, layer: _Layer) -> Chosen:
    """θ is a percentile of the size of activations; the hundredth is the largest of all of them."""
    size = analog(layer.reference, layer.x).abs()
    if step.percent == 100:
        bound = max(abs(end) for end in layer.reference.clip)
        theta = layer.samples.largest[layer.name].clamp(max=bound)
    else:
        theta = torch.quantile(size, step.percent / 100)
    return _with_theta(layer, theta)


def mean_squared_error(step: MeanSquaredError, layer: _Layer) -> Chosen:
    """θ is the best of equal parts of the largest quantized activation."""
    points = midpoints(layer.x)
    target = quantized_activation(layer.reference, points)
    largest = quantized_activation(layer.reference, layer.x).abs().amax()
    if not float(largest) > 0:
        return NOTHING
    parts = torch.arange(1, step.candidates + 1, device=points.device) / step.candidates
    thetas = parts.to(points.dtype) * largest
    best = best_theta(layer.neuron, points, target, thetas, layer.window)
    return _with_theta(layer, thetas[best])


def percentile_alpha_beta(step: PercentileAlphaBeta, layer: _Layer) -> Chosen:
    """θ = αμ, and a gain of β."""
    reference = layer.reference
    alpha, beta = alpha_beta(layer.neuron, layer.x, reference, layer.window, step.objective)
    if beta == 0:
        return "beta is 0"
    theta = alpha * reference.delta.detach() * levels(reference.spec)
    return _with_theta(layer, theta, gain=torch.tensor(beta))


def gaussian(step: Gaussian, layer: _Layer) -> Chosen:
    """θ in closed form from mean and deviation of the input."""
    x = layer.x.double()
    low, high = layer.window.bounds(layer.neuron.spec)
    try:
        theta = gaussian_theta(float(x.mean()), float(x.std(correction=0)), low, high)
    except SpecError:
        return "inputs are constant, or far from every level"
    return _with_theta(layer, torch.tensor(theta))


def _with_theta(layer: _Layer, theta: Tensor, gain: Tensor | None = None) -> Chosen:
    """The layer with another θ, unless its steps would be 0."""
    step = theta.to(layer.neuron.delta) / layer.window.parts(layer.neuron.spec)
    return layer.window.with_theta(layer.neuron, theta, gain) if step > 0 else NOTHING


_FINDERS: dict[type, Callable[..., Chosen]] = {
    InitialPotential: initial_potential,
    Percentile: percentile,
    MeanSquaredError: mean_squared_error,
    PercentileAlphaBeta: percentile_alpha_beta,
    Gaussian: gaussian,
}


@torch.no_grad()
def transform(
    step: Calibration,
    snn: SpikingModel,
    samples: Samples,
    keep_better: bool,
) -> tuple[SpikingModel, list[CalibrationRow]]:
    """The network with what each layer's inputs ask for, one layer by itself.

    Inputs are those in the quantized network, so that what one layer gets does not depend on how
    another was calibrated.
    """
    neurons, rows = {}, []
    for name, neuron in snn.neurons():
        layer = _Layer(name, neuron, samples)
        chosen = fixed_thresholds(neuron) or _FINDERS[type(step)](step, layer)
        neurons[name], row = _judge(step, layer, chosen, keep_better)
        rows.append(row)
    return snn.with_neurons(neurons), rows


@torch.no_grad()
def balance(
    step: Maximum, snn: SpikingModel, samples: Samples, keep_better: bool
) -> tuple[SpikingModel, list[CalibrationRow]]:
    """The network with thresholds balanced: one layer after the other, each over all T steps, with
    the layers before it spiking at what was set for them.

    θ is ``scale`` times the largest current that a neuron gets in one step; presented once, the
    largest charge that it has got by any step. It is taken over at most 1,024 images times steps.

    Source: hybrid conversion (arXiv 2005.01807), without its Poisson input.
    """
    balanced = snn.with_neurons({})
    images = samples.fit[: max(1, _MOST_PASSES // samples.time_steps)]
    front = Lockstep(balanced, samples.reference, list(batches(images)), samples.time_steps)
    rows = []
    for node in front.nodes:
        name, every = str(node.target), range(len(front.batches))
        layer = _Layer(name, front.neuron(node), samples)
        drives = [front.drives(node, k) for k in every]
        inputs = [_inputs(layer, item) for item in drives]
        chosen: Chosen = fixed_thresholds(layer.neuron)
        if not chosen:
            largest = torch.stack([_largest(layer, item) for item in inputs]).amax()
            chosen = _with_theta(layer, step.scale * largest)
        neuron, row = _judge(step, layer, chosen, keep_better)
        rows.append(row)
        balanced.layers.set_submodule(name, neuron)
        front.pass_on(
            node,
            [front.target(node, k) for k in every],
            drives if layer.neuron.table else [front.in_levels(node, x) for x in inputs],
        )
    return balanced.with_neurons({}), rows


def _inputs(layer: _Layer, drives: list[Tensor]) -> list[Tensor]:
    """A layer's input behind each step, from what it is in levels."""
    presentation = layer.samples.presentation
    return [drive * unit(layer.neuron, presentation, t) for t, drive in enumerate(drives)]


def _largest(layer: _Layer, inputs: list[Tensor]) -> Tensor:
    """The largest current of a step, from means over the steps so far; or the largest charge."""
    currents = inputs
    if layer.samples.presentation is Presentation.EVERY_STEP:
        totals = [x * (t + 1) for t, x in enumerate(inputs)]
        currents = [
            now - before for now, before in zip(totals, [0 * inputs[0], *totals], strict=False)
        ]
    return torch.stack([sizes(layer.neuron, current).amax() for current in currents]).amax()


def _judge(
    step: Calibration, layer: _Layer, chosen: Chosen, keep_better: bool
) -> tuple[MTNeuron, CalibrationRow]:
    """The neurons to continue with, and the row that says why."""
    name = name_of([step])
    before = 0.0 if fixed_thresholds(layer.neuron) else layer.loss(layer.neuron)
    if isinstance(chosen, str):
        return layer.neuron, CalibrationRow(name, layer.name, chosen, before, before, False)
    after = layer.loss(chosen)
    kept = not keep_better or after < before
    row = CalibrationRow(name, layer.name, LOSS, before, after, kept)
    return (chosen if kept else layer.neuron), row


THRESHOLD_TRANSFORMS: dict[type, Callable[..., tuple[SpikingModel, list[CalibrationRow]]]] = {
    **dict.fromkeys(_FINDERS, transform),
    Maximum: balance,
}
"""What each calibration of a layer's numbers does."""
