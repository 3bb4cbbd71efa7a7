"""What a layer would emit with other thresholds, and searches over them.

θ is the largest value that a layer can emit in the T steps that are calibrated for. Presented in
every step it is the range of the window, θ = s L (`windows`). Presented once, a neuron climbs a
step s at a time and reaches at most nT levels, so θ = s min(L, nT); in digits all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..neurons.ladder import Radix
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..spiking.levels import even_response, levels, quantized_activation
from ..spiking.presentation import Presentation
from .spec import Objective

_POINTS = 2048
_LEAST = 1e-30
BETAS = torch.arange(0, 201) / 100
"""What β is chosen from: 0 to 2, a hundredth apart."""


@dataclass(frozen=True)
class Window:
    """How a layer is run: its presentation, for T steps."""

    presentation: Presentation
    time_steps: int

    def bounds(self, spec: NeuronSpec) -> tuple[int, int]:
        """The lowest and the highest level that even input can reach, in levels of the window.

        Example:
            >>> from ..neurons.ladder import Uniform
            >>> spec = NeuronSpec(Uniform(3), signed=True, bounds=(-5, 10))
            >>> Window(Presentation.ONCE, 2).bounds(spec)
            (-5, 6)
            >>> Window(Presentation.EVERY_STEP, 2).bounds(spec)
            (-3, 6)
        """
        assert spec.bounds is not None
        low, high = (int(bound or 0) for bound in spec.bounds)
        ladder = spec.ladder
        if isinstance(ladder, Radix):
            reach = int(ladder.until(self.time_steps - 1).reach)
        else:
            reach = int(ladder.reach) * self.time_steps
        if self.presentation is Presentation.ONCE:
            return max(low, -reach), min(high, reach)
        return int(low * reach / levels(spec)), int(high * reach / levels(spec))

    def parts(self, spec: NeuronSpec) -> int:
        """How many quantizer steps s make θ."""
        if self.presentation is Presentation.EVERY_STEP:
            return levels(spec)
        low, high = self.bounds(spec)
        return max(-low, high)

    def theta(self, neuron: MTNeuron) -> Tensor:
        """The largest value that the layer can emit."""
        return neuron.delta.detach() * self.parts(neuron.spec)

    def with_theta(
        self, neuron: MTNeuron, theta: Tensor | float, gain: Tensor | None = None
    ) -> MTNeuron:
        """The layer with another θ; its gain stays unless another is given.

        Example:
            >>> from ..neurons.ladder import Uniform
            >>> window = Window(Presentation.ONCE, 2)
            >>> neuron = MTNeuron(NeuronSpec(Uniform(2), bounds=(0, 15)), 1.0)
            >>> float(window.theta(neuron)), float(window.with_theta(neuron, 8.0).delta)
            (4.0, 2.0)
        """
        step = torch.as_tensor(theta) / self.parts(neuron.spec)
        new = neuron.gain if gain is None else gain.to(neuron.delta)
        return neuron.with_(delta=step.to(neuron.delta), gain=new)

    def response(self, neuron: MTNeuron, x: Tensor) -> Tensor:
        """What the layer has emitted of inputs that come evenly.

        Shapes: any, inputs of all its neurons mixed: an offset that not all share is left out.
        """
        plain = neuron.with_(offset=_shared_offset(neuron))
        return even_response(plain, x, self.presentation, self.time_steps)

    def responses(self, neuron: MTNeuron, x: Tensor, thetas: Tensor) -> Tensor:
        """The same for each of several θ, and without a gain.

        Shapes: x [inputs], thetas [choices]; returns [choices, inputs].
        """
        steps = thetas[:, None] / self.parts(neuron.spec)
        plain = neuron.with_(delta=steps, offset=_shared_offset(neuron), gain=None)
        return even_response(plain, x, self.presentation, self.time_steps)


def _shared_offset(neuron: MTNeuron) -> Tensor | None:
    """The offset of the initial potential, if it is one for all."""
    return None if neuron.offset is None or neuron.offset.dim() else neuron.offset


def midpoints(x: Tensor) -> Tensor:
    """At most 2,048 values that stand for all: the middles of equal shares of the sorted ones.

    Shapes: x [inputs].

    Example:
        >>> midpoints(torch.tensor([3.0, 1.0, 2.0])).tolist()
        [1.0, 2.0, 3.0]
    """
    ordered = x.sort().values
    if len(x) <= _POINTS:
        return ordered
    places = (torch.arange(_POINTS, dtype=torch.float64, device=x.device) + 0.5) / _POINTS
    return ordered[(places * len(x)).long()]


def best_theta(neuron: MTNeuron, x: Tensor, target: Tensor, thetas: Tensor, window: Window) -> int:
    """The index of the θ with the least squared error between target and response.

    Shapes: x, target [inputs]; thetas [choices].
    """
    gain = 1.0 if neuron.gain is None else neuron.gain
    missed = target - window.responses(neuron, x, thetas) * gain
    return int(missed.square().mean(1).argmin())


def alpha_beta_losses(
    responses: Tensor, target: Tensor, betas: Tensor, objective: Objective
) -> Tensor:
    """The loss of every α and β: the squared one is quadratic in β, so three sums do for all β.

    ``signed`` is |Σ (target − β response)|, where errors of opposite signs cancel.

    Shapes: responses [alphas, inputs], target [inputs], betas [betas]; returns [alphas, betas].

    Example:
        >>> responses, target = torch.tensor([[1.0, 2.0]]), torch.tensor([2.0, 1.0])
        >>> betas = torch.tensor([0.0, 1.0])
        >>> alpha_beta_losses(responses, target, betas, Objective.MSE).tolist()
        [[2.5, 1.0]]
        >>> alpha_beta_losses(responses, target, betas, Objective.SIGNED).tolist()
        [[3.0, 0.0]]
    """
    responses, target, betas = responses.double(), target.double(), betas.double()
    if objective is Objective.SIGNED:
        return (target.sum() - betas * responses.sum(1, keepdim=True)).abs()
    product = (responses * target).mean(1, keepdim=True)
    square = responses.square().mean(1, keepdim=True)
    return target.square().mean() - 2 * betas * product + betas.square() * square


def alpha_beta(
    neuron: MTNeuron, x: Tensor, reference: MTNeuron, window: Window, objective: Objective
) -> tuple[float, float]:
    """α and β of one layer: θ = αμ with μ the quantizer's range, and β what a spike carries.

    α is one of the percentiles 0 … 100 of the inputs within (0, μ], over μ, or 1; β one of
    `BETAS`. The squared objective looks at all inputs, the signed one, as its source, at the
    percentiles. What a neuron emits of even input stands for the source's stair.

    Shapes: x [inputs].
    Source: Datta & Beerel, DATE 2022 (arXiv 2112.12133).

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> reference = MTNeuron(NeuronSpec(Uniform(1), bounds=(0, 15)), 1.0)
        >>> window = Window(Presentation.EVERY_STEP, 1)
        >>> alpha_beta(reference, torch.tensor([3.0, 3.0, 15.0]), reference, window, Objective.MSE)
        (1.0, 1.0)
    """
    mu = reference.delta.detach() * levels(reference.spec)
    sizes = x.abs() if reference.spec.limits[0] < 0 else x
    inside = sizes[(sizes > 0) & (sizes <= mu)]
    one = torch.ones(1, dtype=x.dtype, device=x.device)
    shares = torch.linspace(0, 1, 101, dtype=x.dtype, device=x.device)
    percentiles = torch.quantile(inside, shares) if len(inside) else inside
    alphas = torch.cat([one, percentiles / mu])
    alphas = alphas[alphas * mu > _LEAST]  # probabilities can be tiny
    points = midpoints(x) if objective is Objective.MSE else percentiles
    responses = window.responses(neuron, points, alphas * mu)
    betas = BETAS.to(x.device)
    losses = alpha_beta_losses(responses, quantized_activation(reference, points), betas, objective)
    row, column = divmod(int(losses.argmin()), len(betas))
    return float(alphas[row]), float(betas[column])
