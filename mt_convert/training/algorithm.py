"""How one batch becomes gradients: the part of the training loop that is a choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Lesson:
    """One batch, and what an algorithm may do with it.

    ``network(images, ...)`` is the model as accelerate wraps it; ``loss(logits)`` the loss of the
    batch; ``backward(loss)`` adds to the gradients; ``update()`` steps the optimizer on them, and
    is called once more when the algorithm is done. ``time_steps`` are the model's, 1 if it has
    none.
    """

    network: Callable[..., Any]
    images: Tensor
    loss: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], None]
    update: Callable[[], None]
    time_steps: int = 1


class Algorithm(Protocol):
    """A frozen dataclass that makes the gradients of a batch.

    ``kind`` is its name in the identity of a run, beside its fields: no other algorithm has it.
    """

    kind: ClassVar[str]

    def learn(self, lesson: Lesson) -> Tensor:
        """Leave gradients behind; returns the loss to show."""


@dataclass(frozen=True)
class Backpropagation:
    """One forward and one backward pass.

    Example:
        >>> Backpropagation()
        Backpropagation()
    """

    kind: ClassVar[str] = "backpropagation"

    def learn(self, lesson: Lesson) -> Tensor:
        loss = lesson.loss(lesson.network(lesson.images))
        lesson.backward(loss)
        return loss.detach()


class Derivative(StrEnum):
    """What a layer passes back for what it emitted: of each spike, or of its total as a whole."""

    SPIKES = "spikes"  # the surrogate, in this step
    CLIP = "clip"  # of the clipped input: DSR
    ANALOG = "analog"  # of the function that was quantized: tandem learning
