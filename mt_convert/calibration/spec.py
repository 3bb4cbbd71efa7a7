"""What can be calibrated after conversion, as values; each needs images alone, no labels.

No torch. `parse` and `name_of` read and write them as a line of text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, get_args

from ..errors import Fault, SpecError, many


class Objective(StrEnum):
    """What a search over α and β minimises: squared differences, or the size of their sum."""

    MSE = "mse"
    SIGNED = "signed"


class Loss(StrEnum):
    """What layer-wise fine-tuning minimises."""

    MSE = "mse"
    KL = "kl"


class Per(StrEnum):
    """What has an initial potential of its own."""

    CHANNEL = "channel"
    NEURON = "neuron"


@dataclass(frozen=True)
class InitialPotential:
    """One initial potential v0 for all neurons, in thresholds of one step: with ½ emissions are
    rounded to the nearest level, with 0, as in classical rate coding, down."""

    kind: ClassVar[str] = "initial_potential"

    v0: float = 0.5

    def __post_init__(self) -> None:
        _check(self, v0=(_number(-1e6, 1e6), "a number"))


@dataclass(frozen=True)
class Percentile:
    """θ of each layer: a percentile of the size of its activations, over all images and neurons.

    Source: Rueckauer et al. 2017, robust normalisation, is the usual one at 99.9.

    Example:
        >>> Percentile(99.0).percent
        99.0
    """

    kind: ClassVar[str] = "percentile"

    percent: float = 99.9

    def __post_init__(self) -> None:
        _check(self, percent=(_number(0, 100), "above 0, up to 100"))


@dataclass(frozen=True)
class Maximum:
    """θ of each layer: ``scale`` times the largest current it gets while the layers before it spike
    with the thresholds set for them.

    Source: threshold balancing of hybrid conversion (arXiv 2005.01807), 0.7 for few steps.
    """

    kind: ClassVar[str] = "maximum"

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self, scale=(_number(0, math.inf), "above 0"))


@dataclass(frozen=True)
class MeanSquaredError:
    """θ of each layer: of ``candidates`` equal parts of the largest activation, the one of least
    squared error between the activation and what the neuron emits over T steps."""

    kind: ClassVar[str] = "mse"

    candidates: int = 100

    def __post_init__(self) -> None:
        _check(self, candidates=(_count, "whole numbers from 1"))


@dataclass(frozen=True)
class PercentileAlphaBeta:
    """θ (α) and what a spike carries (β) of each layer, by search over percentiles and a grid.

    The signed objective is the source's; in it large errors cancel. The squared one is ours.

    Source: Datta & Beerel, DATE 2022 (arXiv 2112.12133).
    """

    kind: ClassVar[str] = "alpha_beta"

    objective: Objective = Objective.MSE

    def __post_init__(self) -> None:
        _check(self, objective=_one_of(Objective))


@dataclass(frozen=True)
class Gaussian:
    """θ of each layer in closed form, for inputs taken as normal with their mean and deviation.

    Source: H-MT (AAAI 2026), eq. 29.
    """

    kind: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class MembraneMean:
    """Initial potentials that make mean emissions those of the quantized network, repeated.

    Source: dual-phase optimisation (arXiv 2205.07473), phase II.
    """

    kind: ClassVar[str] = "membrane_mean"

    rounds: int = 5
    per: Per = Per.CHANNEL

    def __post_init__(self) -> None:
        _check(self, rounds=(_count, "whole numbers from 1"), per=_one_of(Per))


@dataclass(frozen=True)
class LayerWise:
    """Weights and initial potentials of one layer after the other, trained to give the quantized
    network's activation on what the layers before really emit.

    Source: dual-phase optimisation (arXiv 2205.07473), phase II, whose rate of 1e-4 is for hundreds
    of epochs; ours is for a few.
    """

    kind: ClassVar[str] = "layer_wise"

    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 32
    loss: Loss = Loss.MSE

    def __post_init__(self) -> None:
        _check(
            self,
            epochs=(_count, "whole numbers from 1"),
            lr=(_number(0, math.inf), "above 0"),
            batch_size=(_count, "whole numbers from 1"),
            loss=_one_of(Loss),
        )


@dataclass(frozen=True)
class ThresholdBudget:
    """The number of thresholds of each layer under a budget: ``levels``, their mean over layers, or
    ``spikes`` per neuron and image. One bound is given; a search of least sensitivity chooses.

    Example:
        >>> ThresholdBudget(levels=4).spikes is None
        True
    """

    kind: ClassVar[str] = "thresholds"

    levels: float | None = None
    spikes: float | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            levels=(_optional(_number(0, math.inf)), "above 0, or none"),
            spikes=(_optional(_number(0, math.inf)), "above 0, or none"),
        )
        if (self.levels is None) == (self.spikes is None):
            bounds = f"{self.levels!r}, {self.spikes!r}"
            raise SpecError(
                "ThresholdBudget: one bound is needed",
                [Fault("levels, spikes", bounds, "give one of them")],
            )


Calibration = (
    InitialPotential
    | Percentile
    | Maximum
    | MeanSquaredError
    | PercentileAlphaBeta
    | Gaussian
    | MembraneMean
    | LayerWise
    | ThresholdBudget
)

NAMES: dict[str, type[Calibration]] = {item.kind: item for item in get_args(Calibration)}
"""What calibrations are called in recipes, on the command line and in tables."""


# ------------------------------------------------------------------------------- checks of values

_Check = tuple[Callable[[Any], bool], str]


def _check(step: Any, **checks: _Check) -> None:
    """Raise with all fields that are outside what is allowed; words become enumeration members."""
    faults = list(_faults(step, checks))
    if faults:
        raise SpecError(
            f"{type(step).__name__}: {many(faults, 'value', 'values')} out of range", faults
        )
    for item in dataclasses.fields(step):
        if isinstance(item.default, StrEnum):
            kind = type(item.default)
            object.__setattr__(step, item.name, kind(getattr(step, item.name)))


def _faults(step: Any, checks: dict[str, _Check]) -> Iterator[Fault]:
    """One fault for each field outside what is allowed."""
    for name, (holds, allowed) in checks.items():
        value = getattr(step, name)
        if not holds(value):
            yield Fault(name, repr(value), f"allowed: {allowed}")


def _number(low: float, high: float) -> Callable[[Any], bool]:
    """Whether a value is a finite number in (low, high]."""

    def holds(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and low < value <= high

    return holds


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The same, or None."""
    return lambda value: value is None or holds(value)


def _count(value: Any) -> bool:
    """Whether a value is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _one_of(kind: type[StrEnum]) -> _Check:
    """The members of an enumeration."""
    return lambda value: value in tuple(kind), ", ".join(kind)
