"""How far a share of a sample can be trusted."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


def wilson(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` independent trials.

    Source: Wilson (1927), equation for the score interval, without a correction for continuity.
    Units: shares from 0 to 1.

    Example:
        >>> [round(end, 4) for end in wilson(0.5, 100)], wilson(1.0, 0)
        ([0.4038, 0.5962], (0.0, 1.0))
    """
    if count < 1:
        return 0.0, 1.0
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # at 0 and 1 despite rounding
