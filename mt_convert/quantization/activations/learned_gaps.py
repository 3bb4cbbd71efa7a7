"""An activation quantizer whose thresholds are learned one by one, its output levels equal.

It is a layer of multi-threshold neurons seen for one step: ``ladder`` names its thresholds
as a `Learned` ladder has them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...neurons.ladder import Learned

MOST_BITS = 4  # 15 gaps: behind more levels every gap sees too little of the data
WIDEST = 3.0  # a gap lies between e^-3 and e^3 output steps


class LearnedGaps(nn.Module):
    """n levels behind segments of learned lengths g_0 … g_(n−1), in units of the output step s.

    With y = x/s and c_k = g_0 + … + g_(k−1), segment k reaches from c_k to c_(k+1), and in its
    middle lies its threshold t_k = c_k + g_k/2; the level is Σ_k [y ≥ t_k], the value s times it.
    ``log_gaps`` is what is trained, so that gaps stay positive; α_k = 1/g_k is the slope of a
    segment. Equal gaps of 1 are the uniform quantizer with ties rounded up: where y = k − ½ exactly
    and k is odd, half to even gives k − 1 and this gives k.

    Gradients are those of s Σ_k round(clamp(α_k (y − c_k), 0, 1)) with rounding passed straight
    through: α_k where x lies in segment k, 0 outside all; x, s and the gaps all get theirs.

    Source:
        FATNN (arXiv 2008.05101), the non-uniform activation quantizer for 2 and 3 levels.

    Example:
        >>> layer = LearnedGaps(2)
        >>> layer(torch.tensor([0.2, 0.5, 1.4, 1.6, 9.0]), torch.tensor(1.0)).tolist()
        [0.0, 1.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.log_gaps = nn.Parameter(torch.zeros(levels))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        y = (x / step).to(self.log_gaps.dtype)
        out: Tensor = _Staircase.apply(y, self.gaps, self.thresholds)
        return out * step

    def without_rounding(self, x: Tensor, step: Tensor) -> Tensor:
        """s Σ_k clamp(α_k (y − c_k), 0, 1): the same with nothing rounded."""
        y = (x / step).to(self.log_gaps.dtype)
        out: Tensor = _Staircase.apply(y, self.gaps, None)
        return out * step

    @property
    def gaps(self) -> Tensor:
        """g, which gradients reach."""
        return self.log_gaps.clamp(-WIDEST, WIDEST).exp()

    @property
    def alpha(self) -> Tensor:
        """α = 1/g, the slopes."""
        return 1 / self.gaps

    @property
    def thresholds(self) -> Tensor:
        """t in units of s, as the layer compares them."""
        gaps = self.gaps.detach()
        return gaps.cumsum(0) - gaps / 2

    @property
    def ladder(self) -> Learned:
        """The thresholds, to the last bit: differences of float32 numbers are exact as floats."""
        thresholds = [0.0, *self.thresholds.tolist()]
        return Learned(tuple(high - low for low, high in pairwise(thresholds)))

    def level(self, y: float | Tensor) -> int:
        """The level of one number in units of s."""
        return int((torch.as_tensor(y) >= self.thresholds).sum())

    def equal_(self) -> None:
        """Back to gaps of one output step each."""
        self.log_gaps.data.zero_()

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class _Staircase(torch.autograd.Function):
    """Levels of y (what lies between them, without thresholds); gradients of the segments."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gaps: Tensor, thresholds: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, gaps)
        if thresholds is not None:
            return torch.bucketize(y.contiguous(), thresholds, right=True).to(y.dtype)
        segment, part, _ = _place(y, gaps)
        return (segment + part.clamp(0, 1)).reshape(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        y, gaps = ctx.saved_tensors
        segment, part, steepness = _place(y, gaps)
        inside = (part >= 0) & (part <= 1)
        at_y = torch.where(inside, slope.reshape(-1) * steepness, 0.0)
        own, here = (
            torch.bincount(segment, weights=weights, minlength=len(gaps)).to(gaps.dtype)
            for weights in (at_y * part, at_y)
        )
        beyond = here.sum() - here.cumsum(0)  # a longer gap moves all segments that follow it
        return at_y.reshape(y.shape), -own - beyond, None


def _place(y: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each y in a row: its segment, the nearest where it lies in none; how far into it, from 0
    to 1 inside; and its slope."""
    starts = gaps.cumsum(0) - gaps
    flat = y.reshape(-1)
    segment = torch.bucketize(flat, starts[1:], right=True)
    steepness = (1 / gaps).index_select(0, segment)
    return segment, (flat - starts.index_select(0, segment)) * steepness, steepness
