"""Parts of quantization-aware training that a recipe names, as values. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Fault, SpecError, many

Checks = Mapping[str, tuple[Callable[[Any], bool], str]]
"""Of each field: whether a value is allowed, and which are."""


def outside(spec: Any, checks: Checks) -> Iterator[Fault]:
    """The fields of ``spec`` that are not what ``checks`` allow."""
    for name, (holds, allowed) in checks.items():
        value = getattr(spec, name)
        if not holds(value):
            yield Fault(name, repr(value), f"allowed: {allowed}")


def check(spec: Any, checks: Checks) -> None:
    """Refuse a specification with all its faults at once."""
    faults = tuple(outside(spec, checks))
    if faults:
        name = type(spec).__name__
        raise SpecError(
            f"{many(faults, 'value', 'values')} of {name} outside what is allowed",
            faults,
        )


_OF_STEPS: Checks = {
    "lr_scale": (lambda value: 0 <= value <= 1, "0 to 1"),
    "weight_decay": (lambda value: 0 <= value < float("inf"), "0 or more"),
}


@dataclass(frozen=True)
class StepGroup:
    """How the learned steps of quantizers are trained, activations' and weights'.

    Units: ``lr_scale`` times the rate of all else, at every moment of the schedule, the warm-up
        included; ``weight_decay`` as in `TrainSpec`, by default none.

    Source:
        EWGS (CVPR 2021) trains steps at a hundredth of the weights' rate and does not decay them;
        LSQ (ICLR 2020) scales their gradients instead, which cancels under Adam.

    Raises:
        SpecError: a value outside what is allowed.

    Example:
        >>> StepGroup(lr_scale=0.02).weight_decay
        0.0
    """

    lr_scale: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check(self, _OF_STEPS)


_OF_FREEZING: Checks = {
    "momentum": (lambda value: 0 < value < 1, "between 0 and 1"),
    "bound": (lambda value: 0 < value <= 1, "above 0, up to 1"),
    "final_bound": (lambda value: 0 < value <= 1, "above 0, up to 1"),
}


@dataclass(frozen=True)
class FreezeOscillating:
    """When a weight that jumps to and fro between two levels is frozen, see `Oscillation`.

    Units: ``momentum`` of the frequency, per step; ``bound`` and ``final_bound``, the frequency
        above which a weight is frozen, as a share of the steps, at the start and at the end.

    Source:
        Nagel et al., Overcoming Oscillations in Quantization-Aware Training (ICML 2022).

    Raises:
        SpecError: a value outside what is allowed.

    Example:
        >>> FreezeOscillating().final_bound
        0.01
    """

    momentum: float = 0.01
    bound: float = 0.1
    final_bound: float = 0.01

    def __post_init__(self) -> None:
        check(self, _OF_FREEZING)
        if self.final_bound > self.bound:
            fault = Fault("final_bound", repr(self.final_bound), f"at most bound = {self.bound}")
            raise SpecError("the bound of frozen weights rises", [fault])
