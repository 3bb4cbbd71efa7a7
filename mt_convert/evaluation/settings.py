"""Ways to convert, calibrate and run a network, as values, and the usual methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..calibration.spec import Calibration, InitialPotential, Maximum
from ..calibration.text import name_of, parse
from ..errors import Fault, SpecError
from ..neurons.ladder import LADDERS, Firing, Ladder, Radix, Uniform, ladder_of
from ..spiking.presentation import Presentation, is_step_count
from ..system.keys import key

SETTING_SCHEMA = "setting/1"


@dataclass(frozen=True)
class OwnThresholds:
    """The ``n`` thresholds that training has placed, in each layer where they are; layers with
    equal steps have one for each level.

    Example:
        >>> OwnThresholds(3).natural_firing
        <Firing.PARALLEL: 'parallel'>
    """

    kind: ClassVar[str] = "learned"

    n: int

    @property
    def natural_firing(self) -> Firing:
        """What learned thresholds of equal levels allow."""
        return Firing.PARALLEL


@dataclass(frozen=True)
class Setting:
    """One way to convert and run a network, and the numbers of steps to report.

    A number stands for a ladder of so many equal thresholds, another for one number of steps.
    ``method`` is what tables call it. ``calibration`` is applied in order, for ``calibrated_T``
    steps (the largest reported, if None); ``keep_better`` keeps of each only what lowers its loss.

    Example:
        >>> Setting(Uniform(3), (1, 2, 4)).firing
        <Firing.PARALLEL: 'parallel'>
    """

    kind: ClassVar[str] = "setting"

    ladder: Ladder | OwnThresholds
    time_steps: tuple[int, ...]
    firing: Firing | None = None
    signed: bool = True
    presentation: Presentation = Presentation.ONCE
    whole_window: bool = False
    method: str = ""
    calibration: tuple[Calibration, ...] = ()
    calibrated_T: int | None = None
    keep_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.ladder, OwnThresholds):
            object.__setattr__(self, "ladder", ladder_of(self.ladder))
        object.__setattr__(self, "time_steps", _sorted_steps(self.time_steps))
        if isinstance(self.calibration, str):
            object.__setattr__(self, "calibration", parse(self.calibration))
        object.__setattr__(self, "firing", self.firing or self.ladder.natural_firing)
        object.__setattr__(self, "method", self.method or f"mt_{self.ladder_name}")
        if self.calibration and self.calibrated_T is None:
            object.__setattr__(self, "calibrated_T", self.time_steps[-1])

    @property
    def ladder_name(self) -> str:
        """The ladder's name in tables."""
        return self.ladder.kind

    @property
    def calibration_name(self) -> str:
        """The calibrations' name in tables."""
        return name_of(self.calibration)

    @property
    def comparable(self) -> bool:
        """Whether thresholds are those of the quantizers, so that levels can be compared."""
        return not self.calibration

    @property
    def runs(self) -> tuple[int, ...]:
        """The simulations it needs, by their steps: a longer one shows the shorter ones too, unless
        layers wait for their whole window."""
        return self.time_steps if self.whole_window else self.time_steps[-1:]

    def to_json(self) -> dict[str, Any]:
        """The key of what was made in this setting: all fields, defaults too."""
        return key(SETTING_SCHEMA, self)


def _sorted_steps(time_steps: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of steps, each once."""
    time_steps = (time_steps,) if is_step_count(time_steps) else time_steps  # type: ignore[assignment]
    if (
        not isinstance(time_steps, Sequence)
        or not time_steps
        or not all(map(is_step_count, time_steps))
    ):
        hint = "allowed: whole numbers from 1"
        raise SpecError("no steps to report", [Fault("time_steps", str(time_steps), hint)])
    return tuple(sorted(set(time_steps)))


def with_own_thresholds(
    settings: Sequence[Setting | PeerSetting], levels: int
) -> list[Setting | PeerSetting]:
    """The settings that a network of learned thresholds allows, each with its own thresholds: equal
    thresholds in parallel, the image presented once; peers convert the float network. The others
    are left out.

    Example:
        >>> both = [Setting(Uniform(n), (2,), firing=f) for n in (1, 3) for f in Firing]
        >>> [item.ladder for item in with_own_thresholds(both, 3)]
        [OwnThresholds(n=3)]
    """
    own: dict[Setting | PeerSetting, None] = {}
    for item in settings:
        if isinstance(item, PeerSetting):
            own[item] = None
        elif (
            isinstance(item.ladder, Uniform)
            and item.firing is Firing.PARALLEL
            and item.presentation is Presentation.ONCE
        ):
            method = "" if item.method == f"mt_{item.ladder_name}" else item.method
            own[dataclasses.replace(item, ladder=OwnThresholds(levels), method=method)] = None
    return list(own)


def iso_level(L: int) -> list[Setting]:
    """Even input, n thresholds over T steps with n T = L: from {n=1, T=L} to {n=L, T=1}.

    Example:
        >>> [(setting.ladder.n, setting.time_steps) for setting in iso_level(15)]
        [(1, (15,)), (3, (5,)), (5, (3,)), (15, (1,))]
    """
    return [
        Setting(Uniform(n), (L // n,), signed=False, presentation=Presentation.EVERY_STEP)
        for n in range(1, L + 1)
        if L % n == 0
    ]


def radix_level(L: int) -> list[Setting]:
    """Digits in windows, T of them in base n + 1 with (n + 1)^T = L + 1: n = L alone is left to
    `iso_level`.

    Example:
        >>> [(setting.ladder.n, setting.time_steps) for setting in radix_level(15)]
        [(1, (4,)), (3, (2,))]
    """
    digits = ((Radix(n), Radix(n).digits(L)) for n in range(1, L))
    return [
        Setting(ladder, (T,), signed=False, whole_window=True)
        for ladder, T in digits
        if ladder.base**T == L + 1
    ]


@dataclass(frozen=True)
class PeerSetting:
    """A network that another package converts from the float one, and the steps to report.

    ``n`` 0: its neurons may emit any number of spikes in a step.

    Example:
        >>> PeerSetting("sinabs", (4, 1)).time_steps, PeerSetting("sinabs", (1,)).n
        ((1, 4), 0)
    """

    kind: ClassVar[str] = "peer_setting"
    comparable: ClassVar[bool] = False

    method: str
    time_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "time_steps", _sorted_steps(self.time_steps))

    @property
    def n(self) -> int:
        """Thresholds of its neurons."""
        return 0 if self.method.startswith("sinabs") else 1

    def to_json(self) -> dict[str, Any]:
        """As that of `Setting`."""
        return key(SETTING_SCHEMA, self)


@dataclass(frozen=True)
class Method:
    """A known way to convert, made of our own neurons. ``n`` None: as many thresholds as asked for.

    Example:
        >>> METHODS["qcfs"].setting(7, (4, 8)).ladder
        Uniform(n=1)
    """

    name: str
    what: str
    ladder: str = "uniform"
    n: int | None = None
    signed: bool = False
    presentation: Presentation = Presentation.EVERY_STEP
    calibration: tuple[Calibration, ...] = ()
    whole_window: bool = False

    def setting(self, n: int, time_steps: Sequence[int]) -> Setting:
        """The method with n thresholds, reported after these steps. What a method calibrates is
        part of it, and is not weighed against what was there."""
        return Setting(
            ladder=LADDERS[self.ladder](self.n or n),
            time_steps=tuple(time_steps),
            signed=self.signed,
            presentation=self.presentation,
            method=self.name,
            calibration=self.calibration,
            keep_better=not self.calibration,
            whole_window=self.whole_window,
        )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "rate",
            "classical rate coding: one threshold at the largest input, potentials start at 0",
            n=1,
            calibration=(Maximum(), InitialPotential(0.0)),
        ),
        Method(
            "qcfs",
            "one threshold at the quantizer's range, potentials start at half of it (QCFS)",
            n=1,
        ),
        Method("signed_if", "ternary spikes: one threshold on either side", n=1, signed=True),
        Method("mt_uniform", "n equal thresholds"),
        Method("mt_binary", "a cascade of n thresholds, the bits of 2^n - 1 levels", "binary"),
        Method("mt_power_of_two", "n thresholds 1, 2, 4 …, one spike a step", "power_of_two"),
        Method(
            "mt_signed",
            "n equal thresholds on either side, the image presented once: settles exactly",
            signed=True,
            presentation=Presentation.ONCE,
        ),
        Method(
            "mt_radix",
            "the digits of a level in base n + 1, one a step, each layer waiting for all of them",
            "radix",
            presentation=Presentation.ONCE,
            whole_window=True,
        ),
    )
}
"""The baselines of every table; each is run by the same neurons, simulation and images."""


def with_calibration(
    setting: Setting, text: str, calibrated_for: Sequence[int] | None
) -> list[Setting]:
    """A setting with calibrations behind its own, once for each window of steps it is made for."""
    added = parse(text)
    if not added:
        return [setting]
    windows: dict[int, list[int]] = {}
    ends = sorted(calibrated_for or setting.time_steps)
    for T in setting.time_steps:
        end = next((end for end in ends if end >= T), ends[-1])
        windows.setdefault(end, []).append(T)
    chain = (*setting.calibration, *added)
    return [
        dataclasses.replace(setting, time_steps=tuple(steps), calibration=chain, calibrated_T=end)
        for end, steps in windows.items()
    ]
