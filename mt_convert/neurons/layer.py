"""A layer of multi-threshold neurons as a module."""

from __future__ import annotations

import math
from types import EllipsisType

import torch
from torch import Tensor, nn

from ..errors import SpecError
from .dynamics import NeuronState, initial_state, mt_step
from .spec import PLIF, NeuronSpec
from .step_table import StepTable


class MTNeuron(nn.Module):
    """A layer of multi-threshold neurons: a spec, its step Δ and, for PLIF, the learned leak.

    ``forward`` starts afresh unless it is handed the state of the step before; it keeps nothing.
    ``delta`` becomes a parameter if it is one, else a buffer; ``w`` (PLIF) a parameter. Calibration
    may give it two tensors more: ``offset``, potential at the start beyond ``spec.initial``, for
    each feature, and ``gain``, the ratio of what a spike carries to the threshold it crossed (None
    stands for 0 and 1). ``clip`` holds the bounds of the function whose quantizer it replaced,
    (0, 6) for ReLU6.

    A layer that stands for a function such as GELU has the ``table`` of its thresholds: its level
    is looked up there, from the sum of its input so far, and emitted as any other neuron emits its
    level. ``formula`` is the function itself, which nothing but comparisons with it needs.

    Units:
        ``offset`` in thresholds Δ of one step; it broadcasts over the batch, as [C, 1, 1] does.

    Example:
        >>> from mt_convert.neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(2)), delta=1.0)
        >>> spikes, state = neuron(torch.tensor([0.75, 4.0]))
        >>> spikes.tolist(), neuron(torch.zeros(2), state)[0].tolist()
        ([1.0, 2.0], [0.0, 2.0])
    """

    delta: Tensor
    offset: Tensor | None
    gain: Tensor | None

    def __init__(
        self,
        spec: NeuronSpec,
        delta: Tensor | float,
        *,
        offset: Tensor | None = None,
        gain: Tensor | None = None,
        clip: tuple[float, float] = (0.0, math.inf),
        table: StepTable | None = None,
        formula: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.clip = spec, clip
        self.table, self.formula = table, formula
        step = delta if isinstance(delta, Tensor) else torch.tensor(float(delta))
        if not bool(torch.all(step.detach() > 0)):
            raise SpecError(f"MTNeuron: delta={delta!r}; every step must be above 0")
        if isinstance(step, nn.Parameter):
            self.delta = step
        else:
            self.register_buffer("delta", step)
        self.register_buffer("offset", offset)
        self.register_buffer("gain", gain)
        if isinstance(spec.charge, PLIF):
            self.w = nn.Parameter(torch.tensor(-math.log(spec.charge.tau - 1)))

    def with_(
        self,
        *,
        spec: NeuronSpec | None = None,
        delta: Tensor | None = None,
        offset: Tensor | EllipsisType | None = ...,
        gain: Tensor | EllipsisType | None = ...,
    ) -> MTNeuron:
        """The same layer with other values in the fields that are passed; this one is unchanged.

        ``offset`` and ``gain`` None take theirs away. A leak that was learned starts afresh.

        Example:
            >>> from mt_convert.neurons.ladder import Uniform
            >>> neuron = MTNeuron(NeuronSpec(Uniform(2)), delta=1.0, gain=torch.tensor(3.0))
            >>> other = neuron.with_(delta=torch.tensor(0.5), gain=None)
            >>> float(other.delta), other.gain, other.spec == neuron.spec
            (0.5, None, True)
        """
        if self.table is not None and delta is not None:
            raise SpecError("the thresholds of a function belong to its step: it has no other")
        return MTNeuron(
            self.spec if spec is None else spec,
            self.delta if delta is None else delta,
            offset=self.offset if isinstance(offset, EllipsisType) else offset,
            gain=self.gain if isinstance(gain, EllipsisType) else gain,
            clip=self.clip,
            table=self.table,
            formula=self.formula,
        )

    def level(self, y: Tensor) -> Tensor:
        """What the neuron rounds: its input as it is, in units of its step, or the level that a
        function's thresholds give to its input.

        Example:
            >>> from mt_convert.neurons.ladder import Uniform
            >>> MTNeuron(NeuronSpec(Uniform(2)), delta=1.0).level(torch.tensor(0.75)).item()
            0.75
        """
        level: Tensor = y if self.table is None else self.table(y)
        return level

    def forward(
        self, current: Tensor, state: NeuronState | None = None
    ) -> tuple[Tensor, NeuronState]:
        if self.table is not None:
            raise SpecError(
                "MTNeuron: the thresholds of a function look at the sum of all input: use simulate"
            )
        if state is None:
            state = self.initial_state(current)
        decay = self.w.sigmoid() if isinstance(self.spec.charge, PLIF) else None
        spikes, state = mt_step(state, current, self.spec, self.delta, decay)
        return (spikes if self.gain is None else spikes * self.gain), state

    def initial_state(self, current: Tensor) -> NeuronState:
        """The state before the first step, its offset included."""
        state = initial_state(current, self.spec, self.delta)
        return (
            state if self.offset is None else state._replace(v=state.v + self.offset * self.delta)
        )

    def extra_repr(self) -> str:
        return repr(self.spec)
