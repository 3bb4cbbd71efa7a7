"""What an integer network computes, as a list: the form that every backend runs.

Values are whole numbers, named by index; value 0 is the images as given, real numbers. `Encode`
makes levels of them, `Accumulate` is a convolution or linear layer on int8 weights, `Fire` a
layer of neurons, `Operate` any other operator (moves, pooling, concatenation, real-valued segments)
and `ReadOut` the logits. `Fire` and `ReadOut`
turn whole numbers into real ones in one written order of float32 operations, none of them fused::

    y = numbers_1 * M_1 + B + numbers_2 * M_2 + ...

A step t runs the whole list once. Only `Fire` has state: the running total it left behind. Where
layers wait for their whole window a program is all of it, and nothing has a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..neurons.spec import NeuronSpec
from ..neurons.step_table import StepTable


@dataclass(frozen=True)
class Whole:
    """A value: the shape that one image has of it, and the least and largest number it can hold.

    ``low`` and ``high`` are infinite where it is real, behind an operator without integer form, and
    where its first axis is not that of images (windows of attention).
    """

    shape: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Encode:
    """Levels of the image: clamp(round(x / scale), *bounds), x as float32."""

    out: int
    scale: Tensor
    bounds: tuple[int, int]


@dataclass(frozen=True)
class Accumulate:
    """A convolution (1, 2 or 3 axes of space) or a linear layer over the last axis.

    Shapes: weight int8 [out, in / groups, *kernel], or [out, in]. ``geometry`` is stride, padding,
    dilation (each one entry per axis of space; padding with 0) and groups; of a linear layer ().
    ``limit``: |numbers| of the result never pass it, and it is below 2^31.
    """

    out: int
    name: str
    value: int
    weight: Tensor
    geometry: tuple[Any, ...]
    limit: float


@dataclass(frozen=True)
class Slot:
    """The place of value ``index`` in an instruction."""

    index: int


@dataclass(frozen=True)
class Term:
    """Whole numbers times a float32 multiplier of as many axes (batch first), each 1 or full.

    A multiplier, or a bias, is a value itself where it has an entry for every image.
    """

    value: int
    multiplier: Tensor | Slot


@dataclass(frozen=True)
class Sum:
    """terms[0] * M_0 + bias + terms[1] * M_1 + ..., in this order, in float32."""

    terms: tuple[Term, ...]
    bias: Tensor | Slot | None


@dataclass(frozen=True)
class Fire:
    """One step of a layer of neurons: ``totals_step(sum + offset, total so far, spec)``.

    ``spec`` has the bounds of the running total in this step; ``offset`` is added last. Layers that
    wait fire a whole ``window`` at once, from a total of 0: an input and a neuron for each of its
    steps. Where ``together``, ``input`` and ``spec`` come to the same in one step. A function has
    a ``table``: its thresholds turn the sum, in the network's own numbers, into a level, before
    the offset is added; ``tables`` are those of the steps of a window where they differ.
    """

    out: int
    name: str
    input: Sum
    offset: Tensor | None
    spec: NeuronSpec
    window: tuple[tuple[Sum, NeuronSpec], ...] = ()
    together: bool = True
    table: StepTable | None = None
    tables: tuple[StepTable, ...] = ()


@dataclass(frozen=True)
class Operate:
    """``target(*args, **kwargs)`` on whole numbers held in floating point.

    Sizes of the batch axis stand as multiples of `BATCH`.
    """

    out: tuple[int, ...]
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class ReadOut:
    """The logits."""

    input: Sum


Instruction = Encode | Accumulate | Fire | Operate | ReadOut


@dataclass(frozen=True)
class Program:
    """One step of an integer network. ``values`` by index; ``real``: operators that ran in float.

    ``real`` names layers or operators without integer form, between integer segments.
    """

    instructions: tuple[Instruction, ...]
    values: Mapping[int, Whole]
    real: tuple[str, ...]


def slots(values: Any) -> Iterator[int]:
    """The values among arguments, in order, in whatever lists and mappings.

    Example:
        >>> list(slots(([Slot(2), 7], {"other": Slot(1)})))
        [2, 1]
    """
    if isinstance(values, Slot):
        yield values.index
    elif isinstance(values, Mapping):
        yield from slots(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from slots(value)
