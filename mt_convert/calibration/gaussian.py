"""The best threshold for normal inputs, in closed form. No neurons: a mean, a deviation, levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import Fault, SpecError, many

_STARTS = 400
_HALVINGS = 40
_FAR = 20  # deviations: beyond, the tails of a normal distribution are no numbers to compare


def gaussian_theta(mean: float, std: float, low: int, high: int) -> float:
    """The θ of least squared error between z ~ N(mean, std²) and its levels ``low`` … ``high``.

    With N = max(−low, high) levels are θ/N apart: f(z) = (θ/N) clip(⌊Nz/θ + ½⌋, low, high). Where θ
    is best, the ratio k(θ) = E[z f(z)] / E[f(z)²] is 1::

        k = N [μ/θ (a + b − Σ erf ζ_i) + σ/θ √(2/π) Σ exp(−ζ_i²)] / [a² + b² − Σ (2i − 1) erf ζ_i]
        ζ_i = ((2i − 1) θ/2N − μ) / √2 σ,   i = a + 1 … b

    Repeating θ ← kθ, as the source does, takes thousands of rounds where levels are many: k is
    close to 1 long before. The same θ is found here by halving an interval around the best of 400
    starts; narrow inputs have several such θ.

    Raises:
        SpecError: ``std`` not above 0; bounds without a level, or without one on the inputs' side
            where the mean is 20 deviations from 0.
    Source:
        H-MT (AAAI 2026), eq. 29.

    Example:
        >>> round(gaussian_theta(0.0, 1.0, -1, 1), 3), round(gaussian_theta(0.0, 1.0, 0, 12), 3)
        (1.224, 2.778)
    """
    _check(mean, std, low, high)
    count = max(-low, high)
    lopsided = count / min(-low, high) if low < 0 < high else 1.0
    end = math.log(2 * (abs(mean) + 4 * std) * lopsided)
    starts = torch.linspace(math.log(1e-3 * std), end, _STARTS, dtype=torch.float64).exp()
    moment, square = _moments(starts / count, mean, std, low, high)
    best = int((starts / count * (starts / count * square - 2 * moment)).argmin())
    left, right = starts[max(best - 1, 0)], starts[min(best + 1, _STARTS - 1)]
    for _ in range(_HALVINGS):
        theta = (left * right).sqrt()
        moment, square = _moments(theta.reshape(1) / count, mean, std, low, high)
        too_small = float(moment) > float(theta) / count * float(square)  # k > 1
        left, right = (theta, right) if too_small else (left, theta)
    return float((left * right).sqrt())


def _moments(step: Tensor, mean: float, std: float, low: int, high: int) -> tuple[Tensor, Tensor]:
    """E[z c(z)] and E[c(z)²] with c = clip(⌊z/step + ½⌋, low, high), for each step."""
    level = torch.arange(low + 1, high + 1, dtype=torch.float64)
    zeta = ((level - 0.5) * step[:, None] - mean) / (math.sqrt(2) * std)
    above = torch.special.erfc(zeta)  # 1 − erf, without the rounding far out
    moment = mean * (2 * low + above.sum(1))
    moment = moment + std * math.sqrt(2 / math.pi) * torch.exp(-zeta.square()).sum(1)
    return moment / 2, low**2 + ((2 * level - 1) * above).sum(1) / 2


def _check(mean: float, std: float, low: int, high: int) -> None:
    """Refuse what is no distribution, and bounds that hold no level but 0."""
    faults = []
    if not math.isfinite(mean):
        faults.append(Fault("mean", repr(mean), "allowed: finite numbers"))
    if not (math.isfinite(std) and std > 0):
        faults.append(Fault("std", repr(std), "allowed: above 0"))
    if not low <= 0 <= high or low == high:
        faults.append(Fault("low, high", f"{low}, {high}", "allowed: low <= 0 <= high, not both 0"))
    if not faults and ((low == 0 and mean < -_FAR * std) or (high == 0 and mean > _FAR * std)):
        fault = Fault("mean, std", f"{mean!r}, {std!r}", f"no input reaches levels {low} … {high}")
        faults.append(fault)
    if faults:
        raise SpecError(f"gaussian_theta: {many(faults, 'value', 'values')} out of range", faults)
