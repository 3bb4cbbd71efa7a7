"""One step of a layer of neurons on running totals, with a derivative.

The value is that of `totals.totals_step`, bit for bit: training starts from exactly the network
that was converted. With y the input so far and S the levels emitted so far, h = y + v0 - S is the
potential in units of the step, and the derivative of what is emitted is that of `mt_step`::

    dS'/dy = sum_i w_i g(h - theta_i)     (of a signed neuron: of both directions)
    dS'/dS = 1                            (the reset is detached, as in the literature; else
                                           1 - dS'/dy: what was emitted lowers the potential)

so that gradients through time are those of the network spike by spike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..neurons.dynamics import NeuronState, mt_step, window
from ..neurons.spec import NeuronSpec
from ..neurons.surrogate import SpikeTime, StraightThrough, spike
from ..neurons.totals import totals_step


def fire(y: Tensor, total: Tensor, spec: NeuronSpec, scale: Tensor | float = 1.0) -> Tensor:
    """The total behind a step; backward through ``spec.surrogate``, nothing for None.

    For ladders of equal levels; `fire_learned` is for the others.

    ``scale`` multiplies the derivative (of STDB's surrogate, which depends on spike times).

    Shapes: ``y`` and ``total`` equal. Units: levels; ``y`` without the initial potential.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> from mt_convert.neurons.surrogate import Rectangular
        >>> spec = NeuronSpec(Uniform(3), bounds=(0, 15), surrogate=Rectangular(2.0))
        >>> y = torch.tensor([0.75, 9.0], requires_grad=True)
        >>> fire(y, torch.zeros(2), spec).sum().backward()
        >>> y.grad.tolist()
        [1.0, 0.0]
    """
    fired: Tensor = _Fire.apply(y, total, spec, scale)
    return fired


def fire_learned(y: Tensor, total: Tensor, spec: NeuronSpec, thresholds: Tensor) -> Tensor:
    """The total of a learned ladder, whose thresholds may have a gradient too.

    Its total is a function of y alone: the number of thresholds reached, within the bounds.

    Example:
        >>> from mt_convert.neurons.ladder import Learned
        >>> from mt_convert.neurons.surrogate import Rectangular
        >>> spec = NeuronSpec(
        ...     Learned((1.0, 0.5)), initial=0.0, bounds=(0, 2), surrogate=Rectangular(1.0)
        ... )
        >>> thresholds = torch.tensor([1.0, 1.5], requires_grad=True)
        >>> fire_learned(torch.tensor([1.25]), torch.zeros(1), spec, thresholds).backward()
        >>> thresholds.grad.tolist()
        [-1.0, -1.0]
    """
    most = int(min(spec.limits[1], len(thresholds)))
    within = thresholds[:most]  # they increase: those above the upper bound cannot count
    reached = torch.stack([spike(y - threshold, spec.surrogate) for threshold in within]).sum(0)
    return reached if spec.signed else torch.where(reached >= total, reached, total)


def slope(y: Tensor, total: Tensor, spec: NeuronSpec) -> Tensor:
    """The derivative of what is emitted with respect to y; a mask where it is 0 or 1 alone.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> spec = NeuronSpec(Uniform(3), bounds=(0, 3), surrogate=StraightThrough())
        >>> slope(torch.tensor([-1.0, 0.0, 3.0, 4.0]), torch.zeros(4), spec).tolist()
        [False, True, True, False]
    """
    if spec.surrogate is None:
        return torch.zeros_like(y, dtype=torch.bool)
    if isinstance(spec.surrogate, SpikeTime):
        return spec.surrogate.derivative(y)
    before = NeuronState(spec.initial - total.detach(), total.detach())
    if isinstance(spec.surrogate, StraightThrough):
        return window(before.v + y.detach(), before.total, spec)
    with torch.enable_grad():
        h = y.detach().requires_grad_()
        emitted, _ = mt_step(before, h, spec, 1.0)
        (derivative,) = torch.autograd.grad(emitted.sum(), h)
    return derivative


def in_place_of(smooth: Tensor, value: Tensor) -> Tensor:
    """``value`` with the gradient of ``smooth``.

    Example:
        >>> x = torch.tensor([0.4], requires_grad=True)
        >>> in_place_of(2 * x, torch.tensor([1.0])).backward()
        >>> x.grad.tolist()
        [2.0]
    """
    replaced: Tensor = _InPlaceOf.apply(smooth, value)
    return replaced


class _InPlaceOf(torch.autograd.Function):
    """One tensor forward, the other backward."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Fire(torch.autograd.Function):
    """`totals_step` forward, the surrogate backward."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, total: Tensor, spec: NeuronSpec, scale: Tensor | float
    ) -> Tensor:
        ctx.detach_reset = spec.detach_reset
        if ctx.needs_input_grad[0]:
            factor = slope(y, total, spec)
            ctx.save_for_backward(factor if isinstance(scale, float) else factor * scale)
        return totals_step(y, total, spec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        if not ctx.saved_tensors:
            return None, grads[0], None, None
        at_y = grads[0] * ctx.saved_tensors[0]
        return at_y, grads[0] if ctx.detach_reset else grads[0] - at_y, None, None
