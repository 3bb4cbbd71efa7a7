"""Gradients of a converted network through time, as interchangeable values.

All of them run the network on running totals (see `simulate`): what a layer reads in a step is the
sum of all spikes so far, what it keeps is what it has emitted. That makes them short::

    BPTT    all steps in one graph
    OTTT    a graph per step, in which what was emitted before is taken as given. The sum of all
            spikes so far *is* the trace of a neuron without leak; biases and the image, which are
            part of that sum, are traced with it
    DSR     the last step alone: its totals are the representation, and a total passes back the
            derivative of the clipped input

Networks from scratch (`scratch`) run on single spikes: there the traces and the representations are
leaky sums of their own, and DSR takes all steps in one call (`representation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..neurons.surrogate import (
    ATan,
    Linear,
    Rectangular,
    Sigmoid,
    SpikeTime,
    StraightThrough,
    Surrogate,
    Triangular,
)
from .algorithm import Derivative, Lesson
from .from_scratch.network import ScratchNetwork


@dataclass(frozen=True)
class BPTT:
    """Backpropagation through time, through the surrogates; memory grows with T.

    ``every_step`` is the share of the loss that is taken behind every step, as in TET, the rest is
    taken behind the last one.

    Source: surrogate gradients (Neftci, Mostafa, Zenke 2019); loss of every step: TET (ICLR 2022).

    Raises:
        SpecError: a share outside 0 to 1.

    Example:
        >>> BPTT(every_step=0.5)
        BPTT(every_step=0.5)
    """

    kind: ClassVar[str] = "bptt"

    every_step: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.every_step <= 1:
            raise SpecError(f"BPTT: every_step={self.every_step!r}; allowed is 0 to 1")

    def learn(self, lesson: Lesson) -> Tensor:
        """All steps forward, then all of them back."""
        read_outs, _ = lesson.network(lesson.images, range(lesson.time_steps))
        loss = lesson.loss(read_outs[-1])
        if self.every_step:
            each = torch.stack([lesson.loss(read_out) for read_out in read_outs]).mean()
            loss = (1 - self.every_step) * loss + self.every_step * each
        lesson.backward(loss)
        return loss.detach()


@dataclass(frozen=True)
class OTTT:
    """Online training through time: a backward pass in every step, memory independent of T.

    The loss is the mean of those behind all steps: of the read-outs so far of a converted network,
    of each step's own of one trained from scratch, as in the original. ``online`` steps the
    optimizer in every step (variant O) instead of once (variant A); the totals of a converted
    network then meet the new weights, where potentials keep what the old ones brought.

    Source: OTTT (NeurIPS 2022, arXiv 2210.04195). Needs soft reset; no leak in a converted network,
    whose trace is the running total; a fixed one from scratch.

    Example:
        >>> OTTT(online=True)
        OTTT(online=True)
    """

    kind: ClassVar[str] = "ottt"

    online: bool = False

    def learn(self, lesson: Lesson) -> Tensor:
        """Step by step; nothing of a step's graph is kept."""
        states: Mapping[str, Any] = {}
        losses = []
        for t in range(lesson.time_steps):
            if t and self.online:
                lesson.update()
            read_outs, after = lesson.network(lesson.images, (t,), states)
            _without_leak("OTTT", after)
            states = {name: state.detach() for name, state in after.items()}
            loss = lesson.loss(read_outs[0]) / lesson.time_steps
            lesson.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()


@dataclass(frozen=True)
class DSR:
    """Differentiation on spike representation: T steps forward, one back, as through clipped ReLUs.

    Memory is independent of T; what weights' gradients read are the representations. Networks from
    scratch may leak, with a read-out that leaks alike.

    Source: DSR (CVPR 2022, arXiv 2205.00459), for n thresholds: clip(mean input, 0, n Δ).

    Example:
        >>> DSR()
        DSR()
    """

    kind: ClassVar[str] = "dsr"

    def learn(self, lesson: Lesson) -> Tensor:
        """All steps but the last without a graph; of a network from scratch, all steps."""
        return _by_totals("DSR", lesson, Derivative.CLIP)


@dataclass(frozen=True)
class Tandem:
    """Spike counts forward, the analog network back: a total passes on the derivative of the
    function that was quantized (ReLU: of all that lies above 0). Memory is independent of T.

    Source: tandem learning (Wu et al., TPAMI 2021, arXiv 2007.01204); `tandem` goes layer by layer.

    Example:
        >>> Tandem()
        Tandem()
    """

    kind: ClassVar[str] = "tandem"

    def learn(self, lesson: Lesson) -> Tensor:
        """All steps but the last without a graph."""
        return _by_totals("Tandem", lesson, Derivative.ANALOG)


def _by_totals(name: str, lesson: Lesson, derivative: Derivative) -> Tensor:
    """T steps forward, the last one back, through totals; or one pass back for all of them."""
    if _from_scratch(lesson.network):
        loss = lesson.loss(lesson.network(lesson.images, None, None, derivative))
        lesson.backward(loss)
        return loss.detach()
    last = lesson.time_steps - 1
    with torch.no_grad():
        _, states = lesson.network(lesson.images, range(last)) if last else (None, {})
    read_outs, after = lesson.network(lesson.images, (last,), states, derivative)
    _without_leak(name, after)
    loss = lesson.loss(read_outs[0])
    lesson.backward(loss)
    return loss.detach()


def _from_scratch(network: Any) -> bool:
    """Whether it runs on spikes rather than totals, in whatever training has wrapped it."""
    return isinstance(network, nn.Module) and any(
        isinstance(layer, ScratchNetwork) for layer in network.modules()
    )


def _without_leak(name: str, states: Mapping[str, Any]) -> None:
    """Refuse layers whose potential leaks: their totals are no traces."""
    leaking = [layer for layer, state in states.items() if getattr(state, "lost", None) is not None]
    if leaking:
        raise SpecError(
            f"{name} takes the running total for a layer's trace, which is so without a leak "
            f"alone; {len(leaking)} layers have one, {leaking[0]} first: train with leaks=False, "
            "or by BPTT"
        )


Algorithm = BPTT | OTTT | DSR | Tandem


ALGORITHMS: dict[str, Algorithm] = {
    "bptt": BPTT(),
    "bptt_every_step": BPTT(every_step=1.0),
    "ottt_a": OTTT(),
    "ottt_o": OTTT(online=True),
    "dsr": DSR(),
    "tandem": Tandem(),
}


SURROGATES: dict[str, Surrogate] = {
    surrogate.kind: surrogate
    for surrogate in (
        StraightThrough(),
        Rectangular(),
        ATan(),
        Sigmoid(),
        Triangular(),
        Linear(),
        SpikeTime(),
    )
}
