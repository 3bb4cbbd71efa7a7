"""What learns of a converted network: thresholds, initial potentials, leaks, and its weights.

Every part starts where it changes nothing, not even by rounding: a factor of exp(0), an offset as
calibration left it, a leak of 0, weights that already lie on their grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import SpecError
from ...neurons.ladder import Learned
from ...neurons.layer import MTNeuron
from ...neurons.spec import LIF, NeuronSpec
from ...neurons.surrogate import SpikeTime, Surrogate
from ...neurons.totals import leak_of, totals_step, without_leak
from ...spiking.levels import level_at, unit, window_spec, worth
from ...spiking.presentation import Presentation
from ..algorithm import Derivative
from ..surrogate_step import fire, fire_learned, in_place_of


@dataclass(frozen=True)
class TrainableParts:
    """Which parts of a converted network learn.

    ``weights`` with their biases, on the grid of their quantizers; ``thresholds`` all those of a
    layer by one positive factor, and each gap of a learned ladder; ``potentials`` the initial
    potential of each channel; ``leaks`` one per layer, from none.

    Raises:
        SpecError: nothing learns.

    Example:
        >>> TrainableParts(thresholds=False).weights
        True
    """

    kind: ClassVar[str] = "trainable_parts"

    weights: bool = True
    thresholds: bool = True
    potentials: bool = False
    leaks: bool = False

    def __post_init__(self) -> None:
        if not (self.weights or self.thresholds or self.potentials or self.leaks):
            raise SpecError(
                "nothing learns: set at least one of weights, thresholds, potentials and leaks"
            )


class State(NamedTuple):
    """A layer between two steps, in levels: emitted so far, what leaked away, the potential left,
    steps since it last emitted. The latter three only where a leak or the surrogate needs them."""

    total: Tensor
    lost: Tensor | None = None
    v: Tensor | None = None
    since: Tensor | None = None

    def detach(self) -> State:
        """The same numbers without their history."""
        others = (None if item is None else item.detach() for item in self[1:])
        return State(self.total.detach(), *others)


class TrainedNeuron(nn.Module):
    """A layer of converted neurons while it learns.

    ``factor`` is the logarithm of what all thresholds were multiplied by, ``offset`` the initial
    potential beyond v0 in levels, ``leak`` the share of the potential that is lost in a step,
    ``gaps`` logarithms of what the gaps of a learned ladder were multiplied by.

    Shapes: ``shape`` is what one image has of the layer; one offset per channel in space.
    """

    start: Tensor
    gain: Tensor | None

    def __init__(
        self,
        neuron: MTNeuron,
        surrogate: Surrogate,
        learns: TrainableParts,
        shape: tuple[int, ...],
        detach_reset: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.clip, self.leaks = neuron.spec, neuron.clip, learns.leaks
        self.surrogate, self.detach_reset = surrogate, detach_reset
        self.register_buffer("start", neuron.delta.detach().clone())
        self.register_buffer("gain", None if neuron.gain is None else neuron.gain.clone())
        self.table, self.formula = neuron.table, neuron.formula
        moves = learns.thresholds and neuron.table is None  # a function's belong to its step
        self.factor = _parameter(self.start.new_zeros(()), moves)
        self.leak = _parameter(self.start.new_tensor(leak_of(neuron.spec) or 0.0), learns.leaks)
        offset = neuron.offset
        if offset is None and learns.potentials:
            space = (1,) * len(shape[1:]) if len(shape) > 2 else shape[1:]
            offset = self.start.new_zeros((*shape[:1], *space))
        self.offset = None if offset is None else _parameter(offset, learns.potentials)
        ladder = neuron.spec.ladder
        if isinstance(ladder, Learned) and isinstance(surrogate, SpikeTime):
            raise SpecError(
                "SpikeTime has one gradient for all thresholds of a neuron: with learned gaps take "
                "Rectangular or another surrogate of the potential"
            )
        if isinstance(ladder, Learned) and not detach_reset:
            raise SpecError(
                "the total of a learned ladder answers to its input alone, so that no gradient "
                "passes through its resets: leave detach_reset true"
            )
        learned = learns.thresholds and isinstance(ladder, Learned)
        self.gaps = _parameter(self.start.new_zeros(ladder.n), True) if learned else None

    @property
    def delta(self) -> Tensor:
        """The step between two levels, or of the ladder's unit; positive whatever is learned."""
        return self.start * self.factor.exp()

    def forward(
        self,
        x: Tensor,
        presentation: Presentation,
        t: int,
        before: State | None,
        derivative: Derivative = Derivative.SPIKES,
    ) -> tuple[Tensor, State]:
        """What the layer has emitted behind step t, from all its input so far."""
        if derivative is not Derivative.SPIKES:
            if self.gaps is not None:
                raise SpecError(
                    "DSR and tandem learning pass nothing to learned gaps: train with "
                    "thresholds=False, or by BPTT or OTTT"
                )
            with torch.no_grad():
                value, state = self(x, presentation, t, before)
            return in_place_of(self._smooth(x, presentation, t, derivative), value), state
        y = self._in_levels(x.to(self.start.dtype), presentation, t)
        y = y if self.offset is None else y + self.offset
        before = self._fresh(y) if before is None else before
        lost = v = None
        if before.lost is not None and before.v is not None:
            lost = before.lost + self.share() * before.v
            y = y - lost
        spec = window_spec(without_leak(self.spec), presentation, t)
        total, since = self._fire(y, before, spec)
        if lost is not None:
            v = y - (total.detach() if self.detach_reset else total) + spec.initial
        return total * worth(self, presentation, t), State(total, lost, v, since)

    def _in_levels(self, x: Tensor, presentation: Presentation, t: int) -> Tensor:
        """The input in levels of step t. Of a function it is the level that its thresholds give,
        with the gradient of the function."""
        if self.formula is None:
            return x / unit(self, presentation, t)
        smooth: Tensor = self.formula(x) / unit(self, presentation, t)
        with torch.no_grad():
            level = level_at(self, presentation, t, x)
        return level + (smooth - smooth.detach())

    def share(self) -> Tensor:
        """The leak within 0 and 1; its gradient passes at the ends too."""
        return self.leak + (self.leak.clamp(0, 1) - self.leak).detach()

    def thresholds(self) -> Tensor:
        """The thresholds of a learned ladder in levels: increasing, whatever the parameters are."""
        start = self.start.new_tensor(self.spec.ladder.thresholds)
        if self.gaps is None:
            return start
        gaps = start.diff(prepend=start.new_zeros(1))
        return start + (gaps * self.gaps.expm1()).cumsum(0)

    @torch.no_grad()
    def snapshot(self) -> MTNeuron:
        """The layer as it is now, for `simulate`."""
        spec, share = without_leak(self.spec), float(self.share())
        if self.gaps is not None:
            thresholds = self.thresholds().double()
            gaps = thresholds.diff(prepend=thresholds.new_zeros(1))
            spec = replace(spec, ladder=Learned(tuple(gaps.tolist())))
        if share > 0:
            spec = replace(spec, charge=LIF(1 / share, decay_input=False))
        offset = None if self.offset is None else self.offset.detach().clone()
        return MTNeuron(
            spec,
            self.delta,
            offset=offset,
            gain=self.gain,
            clip=self.clip,
            table=self.table,
            formula=self.formula,
        )

    def _smooth(
        self, x: Tensor, presentation: Presentation, t: int, derivative: Derivative
    ) -> Tensor:
        """The function whose derivative stands for that of the total behind step t."""
        if self.formula is not None:
            x = self.formula(x)
        elif derivative is Derivative.ANALOG:
            return x.clamp(*self.clip)
        if derivative is Derivative.ANALOG:
            return x
        step = unit(self, presentation, t)
        if self.offset is not None:
            x = x + self.offset * step
        low, high = window_spec(without_leak(self.spec), presentation, t).limits
        most = self.spec.ladder.reach * (t + 1)  # nor can it have emitted more than that
        low, high = max(low, -most), min(high, most)
        clipped = torch.minimum(torch.maximum(x, low * step), high * step)
        return clipped if self.gain is None else clipped * self.gain

    def _fresh(self, y: Tensor) -> State:
        """The state in front of the first step."""
        zero = torch.zeros_like(y)
        stdb = self.surrogate if isinstance(self.surrogate, SpikeTime) else None
        far = None if stdb is None else torch.full_like(zero, stdb.first)
        if not self.leaks and leak_of(self.spec) is None:
            return State(zero, since=far)
        v = zero + self.spec.initial
        return State(zero, zero, v if self.offset is None else v + self.offset, far)

    def _fire(self, y: Tensor, before: State, spec: NeuronSpec) -> tuple[Tensor, Tensor | None]:
        """The new total, and the steps since the last emission if the surrogate asks for them."""
        learning = replace(spec, surrogate=self.surrogate, detach_reset=self.detach_reset)
        if isinstance(spec.ladder, Learned):
            return fire_learned(y, before.total, learning, self.thresholds()), None
        if before.since is None or not isinstance(self.surrogate, SpikeTime):
            return fire(y, before.total, learning), None
        with torch.no_grad():
            silent = totals_step(y, before.total, spec) == before.total
            since = torch.where(silent, before.since + 1, torch.zeros_like(y))
        return fire(y, before.total, learning, self.surrogate.fade(since)), since


def _parameter(start: Tensor, learns: bool) -> nn.Parameter:
    return nn.Parameter(start.detach().clone(), requires_grad=learns)
