"""What a network from scratch has answered so far, from what its last layer gives in each step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SpecError
from ..linear_recurrence import linrec


class ReadOut(NamedTuple):
    """The sum over the steps so far, and that of their weights."""

    total: Tensor
    weight: Tensor


def read_out(
    each: Tensor, tau: float | None, before: ReadOut | None = None
) -> tuple[Tensor, ReadOut]:
    """The read-out behind each step, and what the next steps go on from.

    The mean of the steps so far; or, with ``tau``, an integrator y_t = (1 − 1/τ) y_(t−1) + x_t
    divided by the same sum of ones, which is `leaky_mean` of the steps so far.

    Shapes: each [steps, batch, classes], as the read-outs.

    Example:
        >>> each = torch.tensor([[[3.0]], [[6.0]]])
        >>> [read_out(each, tau)[0].flatten().tolist() for tau in (None, 2.0)]
        [[3.0, 4.5], [3.0, 5.0]]
        >>> first, held = read_out(each[:1], 2.0)
        >>> read_out(each[1:], 2.0, held)[0].item()
        5.0
    """
    if tau is None:
        total = each.cumsum(0)
        weight = torch.arange(1, len(each) + 1, dtype=each.dtype, device=each.device)
        if before is not None:
            total, weight = total + before.total, weight + before.weight
    else:
        start, weights = (None, None) if before is None else before
        total = linrec(each, 1 - 1 / tau, start=start)
        weight = linrec(each.new_ones(len(each)), 1 - 1 / tau, start=weights)
    return total / weight.reshape(-1, *[1] * (each.dim() - 1)), ReadOut(total[-1], weight[-1])


def check_read_out_tau(tau: float | None) -> None:
    """Refuse what is no time constant.

    Raises:
        SpecError: neither None nor a finite number above 1.
    """
    if tau is None:
        return
    number = isinstance(tau, int | float) and not isinstance(tau, bool)
    if not number or not math.isfinite(tau) or tau <= 1:
        raise SpecError(
            f"read_out_tau={tau!r}; allowed is a finite number above 1, or None for the mean"
        )
