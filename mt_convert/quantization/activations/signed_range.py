"""The step of a quantizer whose values lie on both sides of 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHRUNK = 24  # fractions of the range that are tried


def fit_range(
    sample: Tensor, extent: tuple[float, float], top: int, power: bool
) -> tuple[float, int]:
    """The step, and how many of ``top`` levels besides 0 lie below it, of least squared error.

    ``extent`` holds the smallest and largest value; ``power`` asks for a step that is a power of 2.

    Example:
        >>> fit_range(torch.linspace(-1, 3, 9), (-1.0, 3.0), 4, power=True)
        (1.0, 1)
    """
    low, high = min(extent[0], 0.0), max(extent[1], 0.0)
    if high - low == 0 or not len(sample):
        low, high = -1.0, 1.0
    full = (high - low) / top
    start, fractions = _steps(full, power)
    below = min(top, round(-low / full))
    errors = []
    for fraction in fractions:
        step = start * fraction
        rounded = torch.round(sample / step).clamp_(-below, top - below)
        errors.append(float((sample - rounded * step).square().mean()))
    return start * fractions[errors.index(min(errors))], below


def fit_dip(
    sample: Tensor, extent: tuple[float, float], top: int, power: bool
) -> tuple[float, int]:
    """`fit_range` of a function's values, which also tries how many levels lie below 0: a dip is
    short, and one level more or less below is one less or more above.

    Example:
        >>> x = torch.linspace(-6, 6, 999)
        >>> fit_dip(x * x.sigmoid(), (-0.2785, 5.985), 15, power=False)[1]
        1
    """
    low, high = min(extent[0], 0.0), max(extent[1], 0.0)
    if high - low == 0 or not len(sample):
        low, high = -1.0, 1.0
    full = (high - low) / top
    start, fractions = _steps(full, power)
    guess = round(-low / full)
    best = (math.inf, start, min(top, guess))
    for fraction in fractions:
        step = start * fraction
        levels = torch.round(sample / step)
        needed = min(top, round(-low / step))
        tried = range(max(0, min(guess, needed) - 1), min(top, max(guess, needed)) + 1)
        for below in tried if len(tried) <= 8 else (guess, needed):
            below = min(below, top)
            error = float((sample - levels.clamp(-below, top - below) * step).square().mean())
            best = min(best, (error, step, below))
    return best[1], best[2]


def _steps(full: float, power: bool) -> tuple[float, list[float]]:
    """The largest step to try, and the fractions of it."""
    if power:
        return 2.0 ** math.ceil(math.log2(full)), [2.0**-k for k in range(5)]
    return full, [1 - k / (SHRUNK + 1) for k in range(SHRUNK)]
