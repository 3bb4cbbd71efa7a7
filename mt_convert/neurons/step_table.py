"""The thresholds of a quantized function: a ladder of unequal thresholds, each worth +1 or -1.

level(x) = clamp(round(f(x) / s), lo, hi) is a step function of x for every elementwise f, so that
parallel thresholds emit it::

    level(x) = level(-inf) + sum_i w_i [x >= theta_i],      w_i = +1 or -1

A monotone f has weights +1 alone; GELU and its kin dip below 0: some -1 first, then +1. A function
that jumps has several thresholds at one place. `bisection` finds them; here they are looked up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float32).max


class StepTable(nn.Module):
    """Thresholds and weights of one layer, for all its channels alike or for each its own.

    ``thresholds`` ascend; behind the last one of a channel that has fewer stand weights of 0.
    ``start`` is level(-inf). ``axis`` counts the channels' axis from the end, -3 for [C, H, W].

    Shapes:
        thresholds float32 [C, n]; weights int8 [C, n]; start int16 [C]; C = 1 for all alike.
    Units: thresholds in the numbers of the function's input, levels in steps of its output.

    Example:
        >>> dip = StepTable(torch.tensor([[-2.0, -0.5, 0.5]]), torch.tensor([[-1, 1, 1]]))
        >>> dip(torch.tensor([-9.0, -1.0, 0.0, 0.5])).tolist()
        [0.0, -1.0, 0.0, 1.0]
    """

    thresholds: Tensor
    weights: Tensor
    start: Tensor

    def __init__(
        self, thresholds: Tensor, weights: Tensor, start: Tensor | None = None, axis: int = -1
    ) -> None:
        super().__init__()
        start = torch.zeros(len(thresholds)) if start is None else start
        self.axis = axis
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("weights", weights.to(torch.int8))
        self.register_buffer("start", start.to(torch.int16))

    def forward(self, x: Tensor) -> Tensor:
        """The level of every number, in the type of x."""
        return self._levels_behind(self.passed(x), x)

    def literal(self, x: Tensor) -> Tensor:
        """The same, each threshold compared with each number: the reference."""
        shape = [1] * (x.dim() - 1)
        shape.insert(x.dim() + self.axis if len(self.start) > 1 else 0, -1)

        def place(column: Tensor) -> Tensor:
            return column.to(x.dtype).reshape(shape) if x.dim() else column.to(x.dtype)[0]

        level = torch.zeros_like(x) + place(self.start)
        for threshold, weight in zip(self.thresholds.T, self.weights.T, strict=True):
            level = level + place(weight) * (x >= place(threshold)).to(x.dtype)
        return level

    def passed(self, x: Tensor) -> Tensor:
        """How many thresholds lie at or below each number, weights of 0 included."""
        if len(self.start) == 1:
            return torch.bucketize(x.contiguous(), self.thresholds[0].to(x.dtype), right=True)
        rows = x.movedim(self.axis, 0)
        flat = rows.reshape(len(self.start), -1).contiguous()
        places = torch.searchsorted(self.thresholds.to(x.dtype), flat, right=True)
        return places.reshape(rows.shape).movedim(0, self.axis)

    def crossed(self, before: Tensor | None, x: Tensor) -> Tensor:
        """The thresholds that lie between two inputs beyond the difference of their levels: pairs
        that were passed up and down, as on a dip. ``before`` None is a neuron at rest, on the
        stretch of level 0 that is nearest to an input of 0.

        Example:
            >>> dip = StepTable(torch.tensor([[-2.0, -0.5, 0.5]]), torch.tensor([[-1, 1, 1]]))
            >>> dip.crossed(None, torch.tensor([-9.0, -1.0, 0.0, 0.5])).tolist()
            [2.0, 0.0, 0.0, 0.0]
        """
        now = self.passed(x)
        levels = self._levels_behind(now, x)
        if before is None:
            places, rest = self._rest()
            then, at_rest = self._along(places, x).expand(x.shape), self._along(rest, x)
        else:
            then = self.passed(before)
            at_rest = self._levels_behind(then, x)
        real = self.weights != 0
        counts = torch.cat([real.new_zeros(len(real), 1), real], 1).cumsum(1)
        passed = self._entries(counts, now) - self._entries(counts, then)
        return passed.abs().to(x.dtype) - (levels - at_rest).abs()

    @property
    def levels(self) -> Tensor:
        """The level behind each number of thresholds passed, [C, n + 1]."""
        start = self.start.long()[:, None]
        return torch.cat([start, start + self.weights.long().cumsum(1)], 1)

    def _rest(self) -> tuple[Tensor, Tensor]:
        """For each channel the thresholds below its rest, and the level there."""
        levels = self.levels
        zero = torch.searchsorted(
            self.thresholds, self.thresholds.new_zeros(len(levels), 1), right=True
        )
        stretch = torch.arange(levels.shape[1], device=levels.device)
        away = levels.abs() * (2 * len(stretch)) + (stretch - zero).abs()
        places = away.argmin(1)
        return places, levels.gather(1, places[:, None])[:, 0]

    def _along(self, column: Tensor, x: Tensor) -> Tensor:
        """One number for each channel, shaped to meet x."""
        if len(column) == 1:
            return column.reshape([1] * x.dim())
        return column.reshape(-1, *[1] * (-1 - self.axis))

    def _levels_behind(self, passed: Tensor, x: Tensor) -> Tensor:
        """Levels from numbers of thresholds passed."""
        return self._entries(self.levels.to(x.dtype), passed)

    def _entries(self, table: Tensor, passed: Tensor) -> Tensor:
        """The entries of a table [C, n + 1] at numbers of thresholds passed."""
        if len(table) == 1:
            return table[0][passed]
        rows = passed.movedim(self.axis, 0)
        return (
            table.gather(1, rows.reshape(len(table), -1)).reshape(rows.shape).movedim(0, self.axis)
        )

    def extra_repr(self) -> str:
        channels, count = self.thresholds.shape
        return f"{count} thresholds" + (f" in each of {channels} channels" * (channels > 1))
