"""Thresholds of functions as the kernels read them: compared one by one, or searched in halves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...neurons.step_table import StepTable
from .layout import Thresholds

FEW = 31  # thresholds to compare one by one: those of 4 bits, both sides of a dip
MOST = 2**16  # thresholds of a layer: places in a table are int32
_ROOM = 32  # channels behind the last, for whole registers


def fits(table: StepTable, shape: tuple[int, ...]) -> bool:
    """Whether the kernels can look levels up: one row for all, or one for each channel of a value
    of this shape.

    Example:
        >>> table = StepTable(torch.tensor([[0.5]] * 3), torch.tensor([[1]] * 3), axis=-3)
        >>> fits(table, (3, 5, 5)), fits(table, (5, 3))
        (True, False)
    """
    rows, count = table.thresholds.shape
    axis = -3 if len(shape) == 3 else -1
    own = table.axis == axis and rows == shape[axis]
    return (rows == 1 or own) and count < MOST and rows * _width(count) < 2**31


def pack(table: StepTable, keep: Callable[[Tensor, torch.dtype], int]) -> Thresholds:
    """The table as the kernels read it; ``keep`` gives the address of numbers that stay."""
    rows, count = table.thresholds.shape
    searched = count > FEW
    if searched:
        width = _width(count)
        beyond = math.nan  # nothing passes it
        thresholds = F.pad(table.thresholds, (0, width - count), value=beyond)
        levels = table.levels.float()
        levels = F.pad(levels, (0, width - levels.shape[1]))
    else:
        thresholds, levels = _by_channel(table.thresholds), torch.zeros(1)
        width = thresholds.shape[1]
    addresses = {
        "thresholds": thresholds,
        "weights": _by_channel(table.weights.float()),
        "start": _by_channel(table.start.float()[:, None]),
        "levels": levels,
    }
    fields = {
        name: keep(tensor.detach().cpu().float(), torch.float32)
        for name, tensor in addresses.items()
    }
    return Thresholds(**fields, count=count, width=width, rows=rows, searched=int(searched))


def _by_channel(rows: Tensor) -> Tensor:
    """Numbers [channels, n] as [n, channels], with room behind."""
    return F.pad(rows.T, (0, _ROOM)) if len(rows) > 1 else rows.T


def _width(count: int) -> int:
    """The smallest power of two above a number of thresholds."""
    return 1 << max(count, 1).bit_length()
