"""Thresholds and levels of one layer, as plain values in units of the layer's step Δ.

No torch. A ladder says which thresholds a neuron has and what reaching them emits;
``n`` is their number, ``cascade`` the order in which a cascade visits them, ``reach`` the most that
one step emits::

    parallel   every threshold looks at the same potential: o = Σ w_i [h ≥ θ_i]
    cascade    each sees what the ones before it left, and takes away exactly what it emits:
               s_i = [r ≥ c_i],  r ← r − c_i s_i,  o = Σ c_i s_i

with θ = ``thresholds``, w = ``weights`` and c = ``cascade``, all in units of Δ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any, ClassVar

from ..errors import SpecError

_MOST_BITS = 16  # every level stays an exact float32 integer, running totals included


class Firing(StrEnum):
    """The order in which the thresholds of one neuron look at its potential."""

    PARALLEL = "parallel"
    CASCADE = "cascade"


_BOTH = (Firing.PARALLEL, Firing.CASCADE)


class _Equidistant:
    """What ladders have in common whose n thresholds lie as far apart as each is worth."""

    n: int

    @property
    def _worth(self) -> int:
        return 1

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple(k * self._worth for k in range(1, self.n + 1))

    @property
    def weights(self) -> tuple[float, ...]:
        return (self._worth,) * self.n

    @property
    def cascade(self) -> tuple[float, ...]:
        return self.weights

    @property
    def reach(self) -> float:
        return self.n * self._worth

    @property
    def natural_firing(self) -> Firing:
        return Firing.PARALLEL

    @property
    def allowed_firing(self) -> tuple[Firing, ...]:
        return _BOTH


@dataclass(frozen=True)
class Uniform(_Equidistant):
    """n equidistant thresholds Δ, 2Δ … nΔ, each worth Δ: n + 1 values per step.

    Parallel firing and the cascade of n equal thresholds Δ emit the same, Δ·clip(⌊h/Δ⌋, 0, n).
    Source: multi-threshold neurons (MT-SNN, arXiv 2303.11127) as later papers describe them.

    Example:
        >>> ladder = Uniform(3)
        >>> ladder.thresholds, ladder.weights, ladder.cascade, ladder.reach
        ((1, 2, 3), (1, 1, 1), (1, 1, 1), 3)
    """

    kind: ClassVar[str] = "uniform"

    n: int

    def __post_init__(self) -> None:
        _check_count("Uniform", "n", self.n, 2**_MOST_BITS - 1)


@dataclass(frozen=True)
class Binary:
    """b thresholds Δ2^(b−1) … 2Δ, Δ visited from the largest down: the emission's b bits.

    The cascade emits Δ·clip(⌊h/Δ⌋, 0, 2^b − 1); in ascending order it would not. Parallel firing
    has no meaning here. Source: the basal neuron of H-MT (AAAI 2026).

    Example:
        >>> ladder = Binary(3)
        >>> ladder.thresholds, ladder.cascade, ladder.reach
        ((1, 2, 4), (4, 2, 1), 7)
    """

    kind: ClassVar[str] = "binary"

    bits: int

    def __post_init__(self) -> None:
        _check_count("Binary", "bits", self.bits, _MOST_BITS)

    @property
    def n(self) -> int:
        return self.bits

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple(2**i for i in range(self.bits))

    @property
    def weights(self) -> tuple[float, ...]:
        return self.thresholds

    @property
    def cascade(self) -> tuple[float, ...]:
        return self.thresholds[::-1]

    @property
    def reach(self) -> float:
        return (1 << self.bits) - 1

    @property
    def natural_firing(self) -> Firing:
        return Firing.CASCADE

    @property
    def allowed_firing(self) -> tuple[Firing, ...]:
        return (Firing.CASCADE,)


@dataclass(frozen=True)
class PowerOfTwo:
    """n thresholds Δ, 2Δ, 4Δ …, and one spike per step: the largest threshold reached.

    ``weights`` are what each further threshold adds (1, 1, 2, 4 …), so that o = Σ w_i s_i holds as
    for the other ladders, with o ∈ {0, 1, 2, 4 …}.

    Example:
        >>> ladder = PowerOfTwo(4)
        >>> ladder.thresholds, ladder.weights, ladder.reach
        ((1, 2, 4, 8), (1, 1, 2, 4), 8)
    """

    kind: ClassVar[str] = "power_of_two"

    n: int

    def __post_init__(self) -> None:
        _check_count("PowerOfTwo", "n", self.n, _MOST_BITS)

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple(2**i for i in range(self.n))

    @property
    def weights(self) -> tuple[float, ...]:
        return (1, *self.thresholds[:-1])

    @property
    def cascade(self) -> tuple[float, ...]:
        """Empty: one spike per step leaves nothing to visit."""
        return ()

    @property
    def reach(self) -> float:
        return 1 << (self.n - 1)

    @property
    def natural_firing(self) -> Firing:
        return Firing.PARALLEL

    @property
    def allowed_firing(self) -> tuple[Firing, ...]:
        return (Firing.PARALLEL,)


@dataclass(frozen=True)
class Learned:
    """Thresholds at the running sums of positive gaps, emitting ``weights`` (default 1).

    Unequal thresholds with equal output levels are FATNN's non-uniform activations (ICCV 2021). In
    cascade firing every threshold emits its own value, from the largest down.

    Example:
        >>> ladder = Learned((0.5, 1.25))
        >>> ladder.thresholds, ladder.weights, ladder.cascade, ladder.reach
        ((0.5, 1.75), (1.0, 1.0), (1.75, 0.5), 2.0)
    """

    kind: ClassVar[str] = "learned"

    gaps: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        gaps = _positive_numbers("Learned", "gaps", self.gaps)
        if not gaps:
            raise SpecError("Learned: gaps is empty; give one positive gap per threshold")
        weights = _positive_numbers("Learned", "weights", self.weights) or (1.0,) * len(gaps)
        if len(weights) != len(gaps):
            raise SpecError(
                f"Learned: {len(weights)} weights for {len(gaps)} gaps; give one per gap, or none"
            )
        object.__setattr__(self, "gaps", gaps)
        object.__setattr__(self, "weights", weights)

    @property
    def n(self) -> int:
        return len(self.gaps)

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple(accumulate(self.gaps))

    @property
    def cascade(self) -> tuple[float, ...]:
        return self.thresholds[::-1]

    @property
    def reach(self) -> float:
        return sum(self.weights)

    @property
    def natural_firing(self) -> Firing:
        return Firing.PARALLEL

    @property
    def allowed_firing(self) -> tuple[Firing, ...]:
        return _BOTH


@dataclass(frozen=True)
class Radix(_Equidistant):
    """The digits of a level in base R = n + 1, one in each step, the most significant first.

    For layers that wait for their whole window: in step t of T = ``steps`` a digit counts
    u_t = R^(T-t) levels, and with S_0 = 0::

        e_t = u_t min(n, floor((q - S_{t-1}) / u_t)),    S_t = S_{t-1} + e_t

    S_T is the level q as soon as R^T >= L + 1. Of levels below 0 the sign times the digits of |q|
    are emitted. ``thresholds`` are in units of u_t; `at` is the ladder of one step. ``steps`` None
    is filled in by `convert`: as many as the largest level of the network takes, so that all
    trains end together. ``gaps``, filled in too, are those of learned thresholds: the table in
    which a level is looked up, by bisection.

    Source: digits in time, radix encoding; with one threshold the Few-Spikes neuron (Stoeckl and
    Maass 2021) and bitwise spikes.

    Example:
        >>> ladder = Radix(3, steps=2)
        >>> ladder.base, [ladder.at(t).thresholds for t in range(2)], Radix(1).digits(15)
        (4, [(4, 8, 12), (1, 2, 3)], 4)
    """

    kind: ClassVar[str] = "radix"
    lifted: ClassVar[bool] = False

    n: int
    steps: int | None = None
    gaps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_count("Radix", "n", self.n, 2**_MOST_BITS - 1)
        if self.steps is not None:
            _check_count("Radix", "steps", self.steps, _MOST_BITS)
        object.__setattr__(self, "gaps", _positive_numbers("Radix", "gaps", self.gaps))

    @property
    def base(self) -> int:
        """R: how many values a digit has."""
        return self.n + 1

    def digits(self, levels: int) -> int:
        """T: the steps that levels up to this one take, ceil(log_R(levels + 1))."""
        steps = 1
        while self.base**steps <= levels:
            steps += 1
        return steps

    def at(self, t: int) -> Digit:
        """The ladder of step t, from 0. Behind the last step all is said: units of 1 emit nothing.

        Raises:
            SpecError: ``steps`` is not filled in.
        """
        return Digit(self.n, self.base ** self._left(t), self.gaps, self.lifted)

    def until(self, t: int) -> Digit:
        """The ladder of one step that emits what the steps up to t, from 0, emit together."""
        left = self._left(t)
        most = self.base ** max((self.steps or 1) - left, 1) - 1
        return Digit(min(most, 2**_MOST_BITS), self.base**left, self.gaps, self.lifted)

    def _left(self, t: int) -> int:
        """How many steps of the window follow step t."""
        if self.steps is None:
            raise SpecError(
                f"{self}: what a digit is worth hangs on the number of steps of the window; "
                "convert fills it in, or pass steps"
            )
        return max(0, self.steps - 1 - t)


@dataclass(frozen=True)
class UnsignedRadix(Radix):
    """Digits in time without a spike below 0, for chips that have none.

    A layer of levels lo … hi emits the digits of q - lo, which takes T = ceil(log_R(hi - lo + 1))
    steps, and S_0 = lo: that is no spike, but a constant of each layer, which is run once through
    whatever reads it. It cannot stand in the bias of a reader, which does not see it where zeros
    are padded.

    Example:
        >>> UnsignedRadix(1).digits(14), Radix(1).digits(7)  # levels -7 … 7
        (4, 3)
    """

    kind: ClassVar[str] = "unsigned_radix"
    lifted: ClassVar[bool] = True


@dataclass(frozen=True)
class Digit(_Equidistant):
    """One step of a `Radix` ladder: n thresholds unit, 2 unit … n unit, each worth ``unit``.

    Made by `Radix.at` while a network runs; it is never stored.

    Example:
        >>> Digit(3, 4).thresholds, Digit(3, 4).reach
        ((4, 8, 12), 12)
    """

    kind: ClassVar[str] = "digit"

    n: int
    unit: int
    gaps: tuple[float, ...] = ()
    lifted: bool = False

    @property
    def table(self) -> tuple[float, ...]:
        """The thresholds of the levels 1, 2 …, where they were learned; empty where the levels are
        whole numbers."""
        return tuple(accumulate(self.gaps))

    @property
    def _worth(self) -> int:
        return self.unit


Ladder = Uniform | Binary | PowerOfTwo | Learned | Radix | UnsignedRadix | Digit

LADDERS: dict[str, type[Uniform] | type[Binary] | type[PowerOfTwo] | type[Radix]] = {
    item.kind: item for item in (Uniform, Binary, PowerOfTwo, Radix)
}
"""Ladders that a number of thresholds describes, by their name in recipes and tables."""


def has_learned_gaps(ladder: Ladder) -> bool:
    """Whether the thresholds of its levels were learned, so that no one step describes them.

    Example:
        >>> has_learned_gaps(Learned((1.0,))), has_learned_gaps(Radix(1, 1, (1.0,)))
        (True, True)
    """
    return isinstance(ladder, Learned) or bool(isinstance(ladder, (Radix, Digit)) and ladder.gaps)


def ladder_of(given: object) -> Ladder:
    """A ladder as it is, or a whole number as that many equal thresholds.

    Raises:
        SpecError: anything else, with what is allowed.

    Example:
        >>> ladder_of(3)
        Uniform(n=3)
    """
    if isinstance(given, Ladder):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return Uniform(given)
    shown = given.__name__ if isinstance(given, type) else repr(given)
    raise SpecError(
        f"ladder is {shown}: allowed are a number of equal thresholds such as 3, Uniform(3), "
        "Binary(2), PowerOfTwo(3), Radix(1), or Learned of gaps"
    )


def ladder_to_json(ladder: Ladder) -> dict[str, Any]:
    """The ladder as plain numbers under a ``kind``.

    Example:
        >>> ladder_to_json(Uniform(3))
        {'kind': 'uniform', 'n': 3}
    """
    fields = {item.name: getattr(ladder, item.name) for item in dataclasses.fields(ladder)}
    lists = {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
    return {"kind": ladder.kind, **lists}


def ladder_from_json(stored: Mapping[str, Any]) -> Ladder:
    """The ladder that ``ladder_to_json`` wrote.

    Raises:
        SpecError: unknown kind, a key missing or too many, or a value out of range.

    Example:
        >>> ladder_from_json({"kind": "learned", "gaps": [0.5, 1.0]}).thresholds
        (0.5, 1.5)
    """
    if not isinstance(stored, Mapping):
        raise SpecError(
            f"ladder: {stored!r} is not a mapping such as {{'kind': 'uniform', 'n': 3}}"
        )
    fields = {key: value for key, value in stored.items() if key != "kind"}
    match stored.get("kind"), sorted(fields):
        case "uniform", ["n"]:
            return Uniform(fields["n"])
        case "binary", ["bits"]:
            return Binary(fields["bits"])
        case "power_of_two", ["n"]:
            return PowerOfTwo(fields["n"])
        case "learned", ["gaps"] | ["gaps", "weights"]:
            return Learned(fields["gaps"], fields.get("weights", ()))
        case "radix" | "unsigned_radix" as kind, ["n"] | ["gaps", "n", "steps"]:
            made = Radix if kind == Radix.kind else UnsignedRadix
            return made(fields["n"], fields.get("steps"), fields.get("gaps", ()))
    raise SpecError(
        f"ladder: {dict(stored)!r}; allowed is kind 'uniform' with n, 'binary' with bits, "
        "'power_of_two' with n, 'learned' with gaps and, if not all 1, weights, 'radix' or "
        "'unsigned_radix' with n"
    )


def _check_count(kind: str, name: str, value: object, most: int) -> None:
    """Raise unless the value is a whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise SpecError(f"{kind}: {name}={value!r}; allowed is a whole number from 1 to {most}")


def _positive_numbers(kind: str, name: str, values: object) -> tuple[float, ...]:
    """The values as floats; raise unless all are finite and above zero."""
    if not isinstance(values, tuple | list):
        raise SpecError(f"{kind}: {name}={values!r}; allowed is a tuple of numbers above 0")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise SpecError(f"{kind}: {name}={values!r}; every number must be finite and above 0")
    return tuple(float(value) for value in values)
