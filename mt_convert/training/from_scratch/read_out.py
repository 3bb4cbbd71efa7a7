"""What a network from scratch has answered so far, from what its last layer gives in each step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import SpecError
from ...neurons.linear_recurrence import linrec


class SoFar(NamedTuple):
    """The sum over the steps so far, and that of their weights."""

    total: Tensor
    weight: Tensor


class ReadOut(nn.Module):
    """The mean of the steps so far; or a neuron that never resets, with a leak.

    With ``tau`` it is y_t = λ y_(t−1) + x_t, λ = 1 − 1/τ, divided by the same sum of ones:
    `leaky_mean` of the steps so far. If it ``learns``, 1/τ = sigmoid(w) with a parameter w, as in a
    PLIF neuron, and τ is where it starts.

    Raises:
        SpecError: τ neither None nor a finite number above 1; a mean that learns.

    Example:
        >>> each = torch.tensor([[[3.0]], [[6.0]]])
        >>> [ReadOut(tau)(each)[0].flatten().tolist() for tau in (None, 2.0)]
        [[3.0, 4.5], [3.0, 5.0]]
        >>> first, held = ReadOut(2.0)(each[:1])
        >>> ReadOut(2.0)(each[1:], held)[0].item()
        5.0
    """

    def __init__(self, tau: float | None = None, learns: bool = False) -> None:
        super().__init__()
        if tau is None and learns:
            raise SpecError("a read-out that learns its leak needs a read_out_tau to start from")
        number = isinstance(tau, int | float) and not isinstance(tau, bool)
        if tau is not None and (not number or not math.isfinite(tau) or tau <= 1):
            raise SpecError(
                f"read_out_tau={tau!r}; allowed is a finite number above 1, or None for the mean"
            )
        self._tau, self.learns = tau, learns
        if learns and tau is not None:
            self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def tau(self) -> float | None:
        """The time constant as it is now, infinite where nothing leaks; None for the mean."""
        if not self.learns:
            return self._tau
        leak = 1 - float(1 - self.w.detach().sigmoid())
        return 1 / leak if leak else math.inf

    def forward(self, each: Tensor, before: SoFar | None = None) -> tuple[Tensor, SoFar]:
        """The read-out behind each step, and what the next steps continue from.

        Shapes: each [steps, batch, classes], as the read-outs; ``before`` is what the call for the
            steps before gave beside them.
        """
        if self._tau is None:
            total = each.cumsum(0)
            weight = torch.arange(1, len(each) + 1, dtype=each.dtype, device=each.device)
            if before is not None:
                total, weight = total + before.total, weight + before.weight
        else:
            kept = 1 - self.w.sigmoid() if self.learns else 1 - 1 / self._tau
            start, weights = (None, None) if before is None else before
            total = linrec(each, kept, start=start)
            weight = linrec(each.new_ones(len(each)), kept, start=weights)
        read_outs = total / weight.reshape(-1, *[1] * (each.dim() - 1))
        return read_outs, SoFar(total[-1], weight[-1])
