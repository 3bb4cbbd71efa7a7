"""Taking turns: every contender once per round, in an order drawn anew, so that what the machine
does meanwhile, and what the one before leaves behind, meets all of them alike. Results are ratios
within rounds, then medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError

LEAST_ROUNDS = 5
AT_LEAST = 0.05  # seconds of each measurement, by repeated calls
MOST_CALLS = 1000
PAUSE = 0.02  # seconds before each measurement: threads of the one before go to sleep
WARM_UPS = 3


@dataclass(frozen=True)
class Clock:
    """What tells the time, what waits for the device, and what waits for idle threads."""

    now: Callable[[], float] = time.perf_counter
    finish: Callable[[], None] = lambda: None
    pause: Callable[[], None] = lambda: time.sleep(PAUSE)


def clock_of(device: torch.device) -> Clock:
    """The clock of a device, which waits until an accelerator has done its work."""
    return Clock() if device.type == "cpu" else Clock(finish=torch.accelerator.synchronize)


def interleave(
    runners: Sequence[Callable[[Tensor], Any]],
    images: Callable[[], Tensor],
    rounds: int,
    clock: Clock | None = None,
) -> Iterator[list[float]]:
    """Yield after each round the seconds per call of every runner, in the order given.

    Each round has fresh images, the same for all, and an order of its own, drawn with a fixed seed.
    All runners are warmed up before the first round.

    Raises:
        SpecError: fewer than `LEAST_ROUNDS` rounds.

    Example:
        >>> draw = lambda: torch.zeros(1)
        >>> found = list(interleave([torch.sin, torch.cos], draw, 5, Clock(pause=lambda: None)))
        >>> len(found), len(found[0])
        (5, 2)
    """
    if rounds < LEAST_ROUNDS:
        raise SpecError(f"rounds is {rounds}: allowed are {LEAST_ROUNDS} or more")
    clock = clock or Clock()
    calls = [_warm_up(runner, images(), clock) for runner in runners]
    random = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        batch = images()
        order = torch.randperm(len(runners), generator=random).tolist()
        seconds = {k: _seconds(runners[k], batch, calls[k], clock) for k in order}
        yield [seconds[k] for k in range(len(runners))]


def _warm_up(runner: Callable[[Tensor], Any], batch: Tensor, clock: Clock) -> int:
    """Call it a few times; say how many calls a measurement is to have."""
    seconds = [_seconds(runner, batch, 1, clock) for _ in range(WARM_UPS)][-1]
    return max(1, min(MOST_CALLS, math.ceil(AT_LEAST / max(seconds, 1e-9))))


def _seconds(runner: Callable[[Tensor], Any], batch: Tensor, calls: int, clock: Clock) -> float:
    """Seconds of a call: the mean of so many; if several, one goes before that does not count."""
    clock.pause()
    if calls > 1:
        runner(batch)
    clock.finish()
    start = clock.now()
    for _ in range(calls):
        runner(batch)
    clock.finish()
    return (clock.now() - start) / calls


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and the smallest and largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value.

        Example:
            >>> Spread.of([3.0, 1.0, 2.0])
            Spread(median=2.0, low=1.0, high=3.0)
        """
        return cls(statistics.median(values), min(values), max(values))


def speed_ups(seconds: Sequence[float], base: Sequence[float]) -> Spread:
    """How many times faster than ``base``, round by round.

    Example:
        >>> speed_ups([1.0, 2.0, 4.0], [2.0, 6.0, 4.0]).median
        2.0
    """
    return Spread.of([theirs / own for own, theirs in zip(seconds, base, strict=True)])
