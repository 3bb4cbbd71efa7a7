"""Noise of activation quantizers while they train: what makes a network robust to spikes that come
early or late. The quantizer itself is passed in as functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spec import ActNoise

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Noise:
    """Which noise, and for `ActNoise.DROP` the share of elements that stay un-quantized."""

    kind: ActNoise = ActNoise.NONE
    share: float = 0.1


def add_noise(
    x: Tensor, step: Tensor, noise: Noise, quantize: Transform, clip: Transform
) -> Tensor:
    """One noisy pass through a quantizer of step s; draws come from torch's default generator.

    ``quantize`` is the plain quantizer, ``clip`` the same without rounding. With ε uniform in
    [−½, ½) for every element::

        none        s clip(round(v/s), lo, hi)
        stochastic  s clip(round(v/s + ε), lo, hi)     its mean is v wherever nothing is clipped
        additive    s clip(v/s + ε, lo, hi)
        drop        quantized, but an element is only clipped with probability ``share``

    Gradients are those of the two functions: straight through rounding, 0 where it is clipped, and
    the step's own with ε held constant.

    Shapes:
        as ``x``; ``step`` of no dimensions.
    Source:
        Noise Adaptor (arXiv 2411.17431) prints the additive form, and stochastic rounding is our
        reading of it; drop is the first phase of dual-phase optimisation (arXiv 2205.07473).

    Example:
        >>> half = Noise(ActNoise.DROP, share=1.0)
        >>> add_noise(torch.tensor([0.3, 9.0]), torch.tensor(1.0), half, torch.round, torch.abs)
        tensor([0.3000, 9.0000])
    """
    return _TRANSFORMS[noise.kind](x, step, noise.share, quantize, clip)


def _none(x: Tensor, step: Tensor, share: float, quantize: Transform, clip: Transform) -> Tensor:
    return quantize(x)


def _stochastic(
    x: Tensor, step: Tensor, share: float, quantize: Transform, clip: Transform
) -> Tensor:
    return quantize(_shift(x, step))


def _additive(
    x: Tensor, step: Tensor, share: float, quantize: Transform, clip: Transform
) -> Tensor:
    return clip(_shift(x, step))


def _drop(x: Tensor, step: Tensor, share: float, quantize: Transform, clip: Transform) -> Tensor:
    return torch.where(torch.rand_like(x) < share, clip(x), quantize(x))


def _shift(x: Tensor, step: Tensor) -> Tensor:
    """v + s ε; the step is part of it, so that v/s + ε has the step's gradient with ε constant."""
    return x + step * (torch.rand_like(x) - 0.5)


_TRANSFORMS: dict[ActNoise, Callable[[Tensor, Tensor, float, Transform, Transform], Tensor]] = {
    ActNoise.NONE: _none,
    ActNoise.STOCHASTIC: _stochastic,
    ActNoise.ADDITIVE: _additive,
    ActNoise.DROP: _drop,
}
