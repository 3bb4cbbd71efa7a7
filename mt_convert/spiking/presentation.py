"""How images are presented over the time steps."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from ..errors import SpecError


class Presentation(StrEnum):
    """How an image is shown to the network over T steps (DESIGN, section 2)."""

    ONCE = "once"  # all charge in the first step, biases too; later steps carry corrections
    EVERY_STEP = "every_step"  # a constant current in each step; the read-out is a mean


def is_step_count(value: object) -> bool:
    """Whether a network can run for so many steps: a whole number from 1, and no bool.

    Example:
        >>> is_step_count(1), is_step_count(0), is_step_count(2.0), is_step_count(True)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_time_steps(time_steps: object) -> None:
    """Raise `SpecError` unless a network can run for so many steps."""
    if not is_step_count(time_steps):
        raise SpecError(f"time_steps is {time_steps!r}: allowed are whole numbers from 1")


def step_counts(time_steps: int | Sequence[int]) -> list[int]:
    """One or several numbers of steps, each once, ascending; or `SpecError`.

    Example:
        >>> step_counts(4), step_counts((8, 1, 8))
        ([4], [1, 8])
    """
    counts = list(time_steps) if isinstance(time_steps, Sequence) else [time_steps]
    if not counts or not all(map(is_step_count, counts)):
        raise SpecError(f"time_steps is {time_steps!r}: allowed are whole numbers from 1")
    return sorted(set(counts))


class Encoder(nn.Module):
    """The quantized image: s * clamp(round(x / s), lo, hi). It is no neuron: it does not spike.

    Example:
        >>> Encoder(torch.tensor(0.5), (-1, 1))(torch.tensor([0.2, 0.3, 9.0]))
        tensor([0.0000, 0.5000, 0.5000])
    """

    def __init__(self, scale: Tensor, level_bounds: tuple[int, int]) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.level_bounds = level_bounds

    def levels(self, images: Tensor) -> Tensor:
        """The integer levels of the image."""
        return torch.round(images / self.scale).clamp(*self.level_bounds)

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images) * self.scale

    def extra_repr(self) -> str:
        return f"level_bounds={self.level_bounds}"
