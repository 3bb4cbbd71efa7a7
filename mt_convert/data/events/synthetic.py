"""Event recordings without files: a blob that moves, its direction the class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..builtin_images import SYNTHETIC_TEST, SYNTHETIC_TRAIN
from ..randomness import generator

if TYPE_CHECKING:
    from .spec import EventSpec  # which reads this file

_EVENTS_PER_CHANGE = 2.0
_NOISE = 0.2
_DARKER = 0.25


class SyntheticRecordings:
    """Synthetic recordings of one part: labels 0, 1, 2, … in turn, and directions evenly around.

    Each is a function of seed, part and index, however many there are and in whatever order they
    are read.
    """

    mirrors = False  # it would turn the direction

    def __init__(self, spec: EventSpec, *, train: bool) -> None:
        self._spec = spec
        self._part = "train" if train else "test"
        asked = spec.limit if train else spec.test_images
        usual = SYNTHETIC_TRAIN if train else SYNTHETIC_TEST
        count = usual if asked is None else asked
        self.labels = torch.arange(count) % spec.number_of_classes

    def __len__(self) -> int:
        return len(self.labels)

    def frames(self, index: int) -> Tensor:
        """The frames of one recording, see `moving_blob`."""
        angle = 2 * math.pi * int(self.labels[index]) / self._spec.number_of_classes
        random = generator(self._spec.seed, "made events", self._part, index)
        return moving_blob(angle, self._spec.time_steps, self._spec.side, random)


def moving_blob(angle: float, time_steps: int, side: int, random: torch.Generator) -> Tensor:
    """Frames of one synthetic recording.

    A blob exp(−d²/2s²), d from its centre and s = side/10, runs straight through the middle,
    3/8 to 5/8 of the side far and off the middle by up to 1/8 down and right. Where brightness
    rises by Δ from one edge of a bin to the next, there are Poisson(2Δ) ON events in that bin, and
    where it falls, OFF events; noise adds Poisson(0.2/T) to both. One blob in four is darker than
    what is behind it, so ON and OFF change places: its direction and the opposite one differ in the
    order of the frames alone. Who does not see the order is right three times in four at most.

    Shapes: int16 [T, 2, side, side], OFF before ON.

    Units: ``angle`` radians, 0 to the right (along a row), π/2 downwards.

    Example:
        >>> frames = moving_blob(0.0, 4, 16, torch.Generator().manual_seed(0))
        >>> frames.shape, frames.dtype
        (torch.Size([4, 2, 16, 16]), torch.int16)
    """
    exact = torch.float64  # rates that differ in the last bit could be drawn differently
    down, right, far, shade = torch.rand(4, generator=random, dtype=exact).tolist()
    path = torch.linspace(-0.5, 0.5, time_steps + 1, dtype=exact) * (3 + 2 * far) / 8
    centres = (
        path * math.sin(angle) + (down - 0.5) / 4,
        path * math.cos(angle) + (right - 0.5) / 4,
    )
    places = (torch.arange(side, dtype=exact) + 0.5) / side - 0.5
    rows, columns = (torch.exp(-50 * (places - centre[:, None]) ** 2) for centre in centres)
    change = (rows[:, :, None] * columns[:, None, :]).diff(dim=0)
    if shade < _DARKER:
        change = -change
    rates = _EVENTS_PER_CHANGE * torch.stack([-change, change], 1).relu() + _NOISE / time_steps
    return torch.poisson(rates, generator=random).to(torch.int16)
