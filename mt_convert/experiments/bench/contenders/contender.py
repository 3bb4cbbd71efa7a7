"""All that take part, by name: what each is, whether it can run here, and how it is made ready.

A contender takes images [batch, channels, height, width] in float32, as they lie in memory, and
returns logits; whatever it has to do to them counts. Nothing that could be done once before is left
to be done in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....errors import error_line
from ....neurons.ladder import Radix
from ..network import Network
from ..rows import ContenderKind

Runner = Callable[[Tensor], Any]
"""Images to logits: [batch, classes], or [T, batch, classes] behind every step."""


@dataclass(frozen=True)
class Case:
    """So many images at once; of a spiking network T steps and n thresholds, else None.

    Example:
        >>> str(Case(32, 4, 3)), str(Case(32))
        ('batch 32, T = 4, n = 3', 'batch 32')
    """

    batch: int
    T: int | None = None
    n: int | None = None

    def __str__(self) -> str:
        steps = "" if self.T is None else f", T = {self.T}, n = {self.n or '∞'}"
        return f"batch {self.batch}{steps}"


@dataclass(frozen=True)
class Contender:
    """``prepare(network, case)`` makes what runs; ``missing(device)`` says why it cannot run.

    ``tolerance``: the largest difference from the float network, as a share of its largest logit,
    with which it still computes the same; None where only the share of equal classes is told.
    ``thresholds``: n of a peer's neurons, 0 for any number of spikes in a step; of ours None.
    ``binary``: n thresholds emit the n bits of a level, so that n follows from the levels.
    ``digits``: a level is emitted in digits, so that T follows from n and the levels.
    ``slow``: it takes minutes to compile, and is left out unless asked for.
    ``reference`` is what it is compared with, if not what its kind is.
    """

    name: str
    kind: ContenderKind
    about: str
    prepare: Callable[[Network, Case], Runner]
    missing: Callable[[torch.device], str | None] = lambda device: None
    tolerance: float | None = None
    thresholds: int | None = None
    binary: bool = False
    digits: bool = False
    slow: bool = False
    reference: Callable[[Network, Case], Runner] | None = None

    def available(self, device: torch.device) -> str | None:
        """None if it can run here, else the reason in one line."""
        try:
            return self.missing(device)
        except Exception as error:  # a package that does not fit what it meets raises anything
            return error_line(error)

    def cases(self, batch: int, steps: Iterable[tuple[int, int]], levels: int) -> list[Case]:
        """What is timed of it, ``steps`` being pairs of T and n for ours; of a network with so many
        levels."""
        pairs = list(steps)
        if self.kind not in (ContenderKind.INTEGER, ContenderKind.PEER):
            return [Case(batch)]
        if self.digits:
            ladders = (Radix(n) for n in dict.fromkeys(n for _, n in pairs) if n < levels)
            return [Case(batch, ladder.digits(levels), ladder.n) for ladder in ladders]
        if self.kind is ContenderKind.INTEGER and not self.binary:
            return [Case(batch, T, n) for T, n in pairs]
        n = levels.bit_length() if self.binary else self.thresholds
        return [Case(batch, T, n) for T in dict.fromkeys(T for T, _ in pairs)]
