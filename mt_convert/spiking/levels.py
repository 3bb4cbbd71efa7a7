"""What a layer of neurons stands for: its quantizer, and what one level is worth behind each step.

Presented once, a level is the quantizer's step s and totals end within its levels
lo … hi. Presented in every step, the levels of a window of T steps span the quantizer's range
θ = s L: a threshold is Δ = θ/n, and one level of the mean is worth Δ/T (METHODS: the level law).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..neurons.ladder import (
    Binary,
    Ladder,
    Learned,
    PowerOfTwo,
    Radix,
    Uniform,
    has_learned_gaps,
)
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..neurons.step_table import StepTable
from ..neurons.totals import totals_step
from .presentation import Presentation


class Layer(Protocol):
    """Neurons with their step: converted ones, or those that learn."""

    spec: NeuronSpec
    gain: Tensor | None
    table: StepTable | None
    formula: nn.Module | None

    @property
    def delta(self) -> Tensor:
        """The distance between two levels."""


def levels(spec: NeuronSpec) -> int:
    """L: the largest level, on either side, of the quantizer that a converted neuron stands for.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> levels(NeuronSpec(Uniform(3), signed=True, bounds=(-5, 10)))
        10
    """
    assert spec.bounds is not None
    return max(-(spec.bounds[0] or 0), spec.bounds[1] or 0, 1)


def unit(neuron: Layer, presentation: Presentation, t: int) -> Tensor:
    """What the input is measured in behind step t, from 0: the distance between two levels.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(3), bounds=(0, 15)), torch.tensor(0.5))
        >>> float(unit(neuron, Presentation.ONCE, 3)), float(unit(neuron, "every_step", 4))
        (0.5, 0.5)
    """
    if presentation == Presentation.ONCE:
        return neuron.delta
    return neuron.delta * (levels(neuron.spec) / (neuron.spec.ladder.reach * (t + 1)))


def input_unit(neuron: Layer, presentation: Presentation, t: int) -> Tensor:
    """What a neuron's input is measured in behind step t: its unit, or 1 where the thresholds of a
    function are in the network's own numbers."""
    if neuron.table is not None:
        return torch.ones_like(neuron.delta.detach())
    return unit(neuron, presentation, t)


def level_at(neuron: Layer, presentation: Presentation, t: int, y: Tensor) -> Tensor:
    """A neuron's input in levels of step t, not yet rounded; of a function the level itself.

    Presented in every step, levels of a window of t + 1 steps are finer than the quantizer's: the
    thresholds for those are bisected on first use.
    """
    if neuron.table is None:
        return y
    table = table_at(neuron, presentation, t)
    level: Tensor = table(y)
    return level


def table_at(neuron: Layer, presentation: Presentation, t: int) -> StepTable:
    """The thresholds of a function behind step t."""
    assert neuron.table is not None
    if presentation == Presentation.ONCE:
        return neuron.table
    formula: Any = neuron.formula
    step = float(unit(neuron, presentation, t).double())
    low, high = window_spec(neuron.spec, presentation, t).limits
    made = neuron.__dict__.setdefault("windows", {})
    key = step, low, high
    if key not in made:
        made[key] = formula.table(step, (int(low), int(high)))
    if made[key].thresholds.device != neuron.delta.device:
        made[key] = made[key].to(neuron.delta.device)
    table: StepTable = made[key]
    return table


def worth(neuron: Layer, presentation: Presentation, t: int) -> Tensor:
    """What one emitted level is worth behind step t: its unit, times the neuron's gain."""
    step = unit(neuron, presentation, t)
    return step if neuron.gain is None else step * neuron.gain


def fixed_thresholds(neuron: Layer) -> str:
    """Why no calibration can move a layer's thresholds by a factor; empty where it can.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> fixed_thresholds(MTNeuron(NeuronSpec(Learned((0.5, 1.0)), initial=0.0), 1.0))
        'learned gaps'
    """
    if neuron.table is not None:
        return "a function"
    return "learned gaps" if has_learned_gaps(neuron.spec.ladder) else ""


def ladder_at(ladder: Ladder, t: int) -> Ladder:
    """The ladder of step t, from 0: the digit of that step where the ladder is radix.

    Example:
        >>> ladder_at(Radix(1, steps=3), 0)
        Digit(n=1, unit=4, gaps=(), lifted=False)
    """
    return ladder.at(t) if isinstance(ladder, Radix) else ladder


def window_spec(spec: NeuronSpec, presentation: Presentation, t: int) -> NeuronSpec:
    """The neuron with its ladder of step t, and the bounds of its running total behind it, in
    levels of that window."""
    if isinstance(spec.ladder, Radix):
        return replace(spec, ladder=spec.ladder.at(t))
    if presentation == Presentation.ONCE:
        return spec
    assert spec.bounds is not None
    reach = spec.ladder.reach * (t + 1)
    low, high = (int((bound or 0) * reach / levels(spec)) for bound in spec.bounds)
    return replace(spec, bounds=(low, high))


def in_one_step(spec: NeuronSpec, time_steps: int) -> NeuronSpec | None:
    """A neuron that in one step emits what ``spec`` emits in a window, where all of its input is
    there at the start; None where one ladder does not say it (powers of two).

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> in_one_step(NeuronSpec(Uniform(3), bounds=(0, 15)), 4).ladder
        Uniform(n=12)
        >>> in_one_step(NeuronSpec(Radix(1, steps=4), bounds=(0, 15)), 4).ladder
        Uniform(n=15)
    """
    ladder: Ladder = spec.ladder
    if isinstance(ladder, Radix):
        ladder = ladder.until(time_steps - 1)
        if ladder.unit == 1 and ladder.gaps:
            ladder = Learned(ladder.gaps)
        elif ladder.unit == 1:
            ladder = Uniform(min(ladder.n, levels(spec)))
    elif isinstance(ladder, (Uniform, Binary)):
        ladder = Uniform(min(int(ladder.reach) * time_steps, levels(spec)))
    elif isinstance(ladder, PowerOfTwo) and time_steps > 1:
        return None
    # one step from 0 ends where digits from the lowest level end
    signed = spec.signed or (bool(spec.start) and isinstance(ladder, Uniform))
    return replace(spec, ladder=ladder, signed=signed)


def quantized_activation(neuron: MTNeuron, x: Tensor) -> Tensor:
    """The quantized activation the neuron stands for, bit for bit: s clamp(round(x/s), lo, hi);
    with learned gaps s times the number of thresholds reached.

    Shapes: any. Units: those of the network.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(3), bounds=(0, 3)), torch.tensor(0.5))
        >>> quantized_activation(neuron, torch.tensor([-1.0, 0.75, 9.0])).tolist()
        [0.0, 1.0, 1.5]
    """
    if neuron.table is not None:
        return neuron.table(x) * neuron.delta
    ladder = neuron.spec.ladder
    if isinstance(ladder, Radix) and ladder.gaps:
        ladder = Learned(ladder.gaps)
    if isinstance(ladder, Learned):
        y = x / neuron.delta
        spec = replace(neuron.spec, ladder=ladder)
        return totals_step(y, torch.zeros_like(y), spec) * neuron.delta
    low, high = neuron.spec.limits
    return torch.round(x / neuron.delta).clamp(low, high) * neuron.delta


def analog(neuron: MTNeuron, x: Tensor) -> Tensor:
    """The function that was quantized: ReLU, ReLU6, a clip, or nothing.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(3), bounds=(0, 3)), torch.tensor(0.5))
        >>> analog(neuron, torch.tensor([-1.0, 0.75, 9.0])).tolist()
        [0.0, 0.75, 9.0]
    """
    if neuron.formula is not None:
        return neuron.formula(x)
    return x.clamp(*neuron.clip)


def even_response(
    neuron: MTNeuron, x: Tensor, presentation: Presentation, time_steps: int
) -> Tensor:
    """What the neuron has emitted after T steps when its input arrives evenly: all at once, or the
    same current in every step. No unevenness: what differs from
    `quantized_activation` is a lack of steps.

    Shapes: any. Units: those of the network; presented in every step, a mean over the steps.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(2), bounds=(0, 15)), torch.tensor(1.0))
        >>> even_response(neuron, torch.tensor([3.2, 9.0]), Presentation.ONCE, 3).tolist()
        [3.0, 6.0]
        >>> even_response(neuron, torch.tensor([3.2, 9.0]), Presentation.EVERY_STEP, 3).tolist()
        [2.5, 10.0]
    """
    total = torch.full_like(x, neuron.spec.start)
    for t in range(time_steps):
        y = level_at(neuron, presentation, t, x / input_unit(neuron, presentation, t))
        if neuron.offset is not None:
            y = y + neuron.offset
        total = totals_step(y, total, window_spec(neuron.spec, presentation, t))
    return total * worth(neuron, presentation, time_steps - 1)
