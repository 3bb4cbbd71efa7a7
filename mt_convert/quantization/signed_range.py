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
    fractions = (
        [2.0**-k for k in range(5)] if power else [1 - k / (SHRUNK + 1) for k in range(SHRUNK)]
    )
    start = 2.0 ** math.ceil(math.log2(full)) if power else full
    below = min(top, round(-low / full))
    errors = []
    for fraction in fractions:
        step = start * fraction
        rounded = torch.round(sample / step).clamp_(-below, top - below)
        errors.append(float((sample - rounded * step).square().mean()))
    return start * fractions[errors.index(min(errors))], below
