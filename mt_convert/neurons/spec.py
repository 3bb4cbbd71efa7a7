"""What a layer of multi-threshold neurons is: ladder, leak, reset, surrogate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from ..errors import SpecError
from .ladder import Digit, Firing, Ladder, Learned, Radix, UnsignedRadix
from .surrogate import StraightThrough, Surrogate


@dataclass(frozen=True)
class IF:
    """Charge without leak: h = v + I."""

    kind: ClassVar[str] = "IF"


@dataclass(frozen=True)
class LIF:
    """Charge with a fixed leak: h = v + (I − v)/τ, or h = v − v/τ + I without ``decay_input``."""

    kind: ClassVar[str] = "LIF"

    tau: float
    decay_input: bool = True

    def __post_init__(self) -> None:
        _check_tau("LIF", self.tau, allow_one=True)


@dataclass(frozen=True)
class PLIF:
    """Charge as LIF with a learned leak 1/τ = sigmoid(w), one w per layer; ``tau`` is its start.

    Source: SpikingJelly ``neuron/plif.py``; w starts at −ln(τ − 1).
    """

    kind: ClassVar[str] = "PLIF"

    tau: float = 2.0
    decay_input: bool = True

    def __post_init__(self) -> None:
        _check_tau("PLIF", self.tau, allow_one=False)


Charge = IF | LIF | PLIF


class Reset(StrEnum):
    """What firing does to the potential: subtract the emission, or clear it."""

    SOFT = "soft"
    HARD = "hard"


@dataclass(frozen=True)
class NeuronSpec:
    """Everything a layer of neurons is, except its step Δ.

    Units: ``initial`` (the potential v0 at the start) and ``bounds`` of the running total are in
    Δ. ``firing=None`` is the ladder's natural one; ``surrogate=None`` lets no gradient through.
    With ``detach_reset`` gradients do not pass through resets; else a soft one passes back that of
    the emission it takes away, a hard one that of the lowest threshold's spike, which cleared it.

    Raises:
        SpecError: a combination that has no meaning; the message says which are allowed.

    Example:
        >>> from mt_convert.neurons.ladder import Binary
        >>> NeuronSpec(Binary(4), signed=True, bounds=(0, 15)).rule
        <Firing.CASCADE: 'cascade'>
    """

    kind: ClassVar[str] = "neuron"

    ladder: Ladder
    firing: Firing | None = None
    charge: Charge = field(default_factory=IF)
    reset: Reset = Reset.SOFT
    signed: bool = False
    initial: float = 0.5
    bounds: tuple[int | None, int | None] | None = None
    surrogate: Surrogate | None = None
    detach_reset: bool = True

    def __post_init__(self) -> None:
        name, ladder = type(self.ladder).__name__, self.ladder
        if self.rule not in ladder.allowed_firing:
            allowed = " or ".join(ladder.allowed_firing)
            raise SpecError(f"NeuronSpec: firing={self.firing!r} with {name}; allowed is {allowed}")
        if self.reset not in tuple(Reset):
            raise SpecError(f"NeuronSpec: reset={self.reset!r}; allowed is soft or hard")
        if not math.isfinite(self.initial):
            raise SpecError(f"NeuronSpec: initial={self.initial!r}; allowed is a finite number")
        if self.signed and self.initial >= ladder.thresholds[0]:
            raise SpecError(
                f"NeuronSpec: initial={self.initial!r} of a signed neuron; it must lie below the "
                f"smallest threshold {ladder.thresholds[0]}, or both directions fire at once"
            )
        if isinstance(ladder, UnsignedRadix) and self.signed:
            raise SpecError(
                "NeuronSpec: signed UnsignedRadix; its digits count from the lowest level"
            )
        lo, hi = self.limits
        if not lo <= 0 <= hi:
            raise SpecError(f"NeuronSpec: bounds={self.bounds!r}; allowed is lo <= 0 <= hi or None")
        through_clearing = self.reset is Reset.HARD and not self.detach_reset
        if through_clearing and (
            isinstance(self.surrogate, StraightThrough) or self.bounds is not None
        ):
            raise SpecError(
                "NeuronSpec: detach_reset=False with a hard reset, which passes back the gradient "
                "of the lowest threshold; allowed are a surrogate such as ATan and no bounds"
            )
        if isinstance(self.surrogate, StraightThrough) and isinstance(ladder, Learned):
            raise SpecError(
                "NeuronSpec: StraightThrough needs integer levels; give a Learned ladder a "
                "Rectangular, Triangular, ATan or Sigmoid surrogate"
            )

    @property
    def rule(self) -> Firing:
        """The firing in force."""
        return self.ladder.natural_firing if self.firing is None else self.firing

    @property
    def start(self) -> float:
        """The running total before the first step: 0, or the lowest level of an `UnsignedRadix`
        layer, which counts from there."""
        lifted = isinstance(self.ladder, (Radix, Digit)) and self.ladder.lifted
        return (self.bounds or (0, 0))[0] or 0 if lifted else 0

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds of the running total with infinity for none."""
        lo, hi = self.bounds or (None, None)
        return (-math.inf if lo is None else lo, math.inf if hi is None else hi)


def _check_tau(kind: str, tau: float, *, allow_one: bool) -> None:
    """Raise unless τ is finite and at least (or above) 1."""
    if not math.isfinite(tau) or tau < 1 or (tau == 1 and not allow_one):
        allowed = "at least 1" if allow_one else "above 1"
        raise SpecError(f"{kind}: tau={tau!r}; allowed is a finite number {allowed}")
