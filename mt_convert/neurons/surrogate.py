"""Backward passes of the spike: what stands in for the derivative of the Heaviside step.

Every surrogate is a frozen value; its argument x is the distance to the threshold in units
of Δ, (h − θ)/Δ. Each shape has area 1, so that all of them move the same charge on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SpecError


@dataclass(frozen=True)
class Rectangular:
    """Boxcar g(x) = 1/width for |x| ≤ width/2, else 0.

    Example:
        >>> Rectangular(2.0).derivative(torch.tensor([-1.0, 0.0, 1.5])).tolist()
        [0.5, 0.5, 0.0]
    """

    kind: ClassVar[str] = "rectangular"

    width: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("Rectangular", "width", self.width)

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() <= self.width / 2).to(x.dtype) / self.width


@dataclass(frozen=True)
class ATan:
    """g(x) = (α/2) / (1 + (παx/2)²).

    Source: the usual choice for PLIF neurons; formula and α = 2 as in SpikingJelly's ``ATan``.

    Example:
        >>> ATan(2.0).derivative(torch.tensor([0.0])).tolist()
        [1.0]
    """

    kind: ClassVar[str] = "atan"

    alpha: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("ATan", "alpha", self.alpha)

    def derivative(self, x: Tensor) -> Tensor:
        return (self.alpha / 2) / (1 + (math.pi / 2 * self.alpha * x).square())


@dataclass(frozen=True)
class Sigmoid:
    """g(x) = α σ(αx) (1 − σ(αx)).

    Source: online training through time (OTTT, arXiv 2210.04195), which uses α = 4.

    Example:
        >>> Sigmoid(4.0).derivative(torch.tensor([0.0])).tolist()
        [1.0]
    """

    kind: ClassVar[str] = "sigmoid"

    alpha: float = 4.0

    def __post_init__(self) -> None:
        _check_positive("Sigmoid", "alpha", self.alpha)

    def derivative(self, x: Tensor) -> Tensor:
        fired = torch.sigmoid(self.alpha * x)
        return self.alpha * fired * (1 - fired)


@dataclass(frozen=True)
class Triangular:
    """g(x) = max(0, 1 − |x|/width) / width.

    Example:
        >>> Triangular(2.0).derivative(torch.tensor([0.0, 1.0, 3.0])).tolist()
        [0.5, 0.25, 0.0]
    """

    kind: ClassVar[str] = "triangular"

    width: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("Triangular", "width", self.width)

    def derivative(self, x: Tensor) -> Tensor:
        return (1 - x.abs() / self.width).clamp(min=0) / self.width


@dataclass(frozen=True)
class StraightThrough:
    """Derivative 1 of the whole emission over [Δ/2, (n + ½)Δ], for ladders with integer levels.

    A neuron applies it once to the sum over its thresholds; ``derivative`` is the part of one
    threshold, 1 for |x| ≤ ½. Source: the boxcar in LM-HT's published code
    (github hzc1208/LMHT_SNN).

    Example:
        >>> StraightThrough().derivative(torch.tensor([-0.5, 0.0, 0.75])).tolist()
        [1.0, 1.0, 0.0]
    """

    kind: ClassVar[str] = "straight_through"

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() <= 0.5).to(x.dtype)


@dataclass(frozen=True)
class Linear:
    """g(x) = α max(0, 1 − |x|), of area α.

    Source: the linear surrogate of hybrid conversion with STDB (arXiv 2005.01807), α = 0.3.

    Example:
        >>> Linear(0.5).derivative(torch.tensor([0.0, 0.5, 2.0])).tolist()
        [0.5, 0.25, 0.0]
    """

    kind: ClassVar[str] = "linear"

    alpha: float = 0.3

    def __post_init__(self) -> None:
        _check_positive("Linear", "alpha", self.alpha)

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha * (1 - x.abs()).clamp(min=0)


@dataclass(frozen=True)
class SpikeTime:
    """α exp(−β Δt) wherever the potential is, Δt steps since the neuron last emitted anything.

    A neuron that emits in this step has Δt = 0; one that never did counts as if it had ``first``
    steps before the start, a thousand as in the source's code. ``derivative`` is that of Δt = 0,
    ``fade`` the factor exp(−β Δt). A multi-threshold neuron has one Δt for all its thresholds, and
    the gradient of one.

    Source: spike-timing-dependent backpropagation (STDB, arXiv 2005.01807); α and β are its code's.

    Example:
        >>> SpikeTime(0.5, 1.0).fade(torch.tensor([0.0, torch.inf])).tolist()
        [1.0, 0.0]
    """

    kind: ClassVar[str] = "stdb"

    alpha: float = 0.3
    beta: float = 0.01
    first: float = 1000.0

    def __post_init__(self) -> None:
        _check_positive("SpikeTime", "first", self.first)
        _check_positive("SpikeTime", "alpha", self.alpha)
        _check_positive("SpikeTime", "beta", self.beta)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.alpha)

    def fade(self, since: Tensor) -> Tensor:
        """exp(−β Δt)."""
        return torch.exp(-self.beta * since)


Surrogate = Rectangular | ATan | Sigmoid | Triangular | StraightThrough | Linear | SpikeTime


def spike(x: Tensor, surrogate: Surrogate | None) -> Tensor:
    """1 where x ≥ 0, else 0, in x's dtype; backward ``surrogate.derivative(x)``, zero for None.

    Example:
        >>> x = torch.tensor([-0.25, 0.0], requires_grad=True)
        >>> spike(x, Triangular()).sum().backward()
        >>> x.grad.tolist()
        [0.75, 1.0]
    """
    if surrogate is None:
        return (x >= 0).to(x.dtype)
    fired: Tensor = _Spike.apply(x, surrogate)
    return fired


def straight_through(value: Tensor, x: Tensor, inside: Tensor) -> Tensor:
    """``value`` itself, with derivative 1 with respect to x where ``inside`` holds, else 0.

    Example:
        >>> x = torch.tensor([0.7, 9.0], requires_grad=True)
        >>> straight_through(torch.tensor([1.0, 3.0]), x, x < 4).sum().backward()
        >>> x.grad.tolist()
        [1.0, 0.0]
    """
    passed: Tensor = _StraightThrough.apply(value, x, inside)
    return passed


class _Spike(torch.autograd.Function):
    """Heaviside forward, surrogate backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(x), None


class _StraightThrough(torch.autograd.Function):
    """The value forward, a masked identity to x backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (inside,) = ctx.saved_tensors
        return None, grads[0] * inside, None


def _check_positive(kind: str, name: str, value: float) -> None:
    """Raise unless the value is a finite number above zero."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise SpecError(f"{kind}: {name}={value!r}; allowed is a finite number above 0")
