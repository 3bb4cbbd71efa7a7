"""What leaves the house: steps of a converted network on whole numbers, ready to be written.

`integer_form` takes the integer engine's program and turns it into few kinds of nodes that any
language has. Nothing is computed anew: thresholds come from the written float32 formula by
`threshold_tables`, movements from the operators themselves.

    encode      levels of the image: clamp(rint(x / scale), low, high)
    conv        sums of products, zeros around      linear   the same over the last axis
    gather      the numbers of the inputs, flattened and joined, elsewhere; 0 stands for a zero
    reshape     the same numbers in another shape, or once more for a node that reads them twice
    max_pool, sum_pool    over windows              max, sum over whole axes
    scale       times whole numbers
    fire        a level for the number of thresholds reached (see `Fire`)
    float       operators on real numbers, where a target takes them (see `float_segments`)
    emit        what was emitted before, moved towards that level (see `unrolled`)
    read_out    the logits: in_0 * M_0 + B + in_1 * M_1 + ..., each operator in float32
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...integer_engine.model import IntegerModel
from ...integer_engine.program import Fire, Program, Sum, Whole
from ...neurons.totals import totals_step


@dataclass(frozen=True)
class Value:
    """What one image has of a value: its shape, the least and the largest number it can hold;
    ``real`` ones are float32, and hold anything."""

    shape: tuple[int, ...]
    low: int
    high: int
    real: bool = False

    @property
    def size(self) -> int:
        """How many numbers it is."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bits that hold it; with a sign where it can be below 0."""
        return max((-self.low - 1).bit_length(), self.high.bit_length()) + (self.low < 0) or 1


@dataclass(frozen=True)
class Node:
    """One operator: the values it reads, the one it makes, plain settings, and arrays."""

    op: str
    name: str
    inputs: tuple[int, ...]
    out: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class IntegerForm:
    """A network as nodes. ``values`` by index; value 0 is the image, as real numbers.

    ``program`` and ``model`` are what it came from, to compare with; ``sources[out]`` is the
    program's instruction of a node. Where layers wait, all ``time_steps`` of a window are one pass.
    ``levels`` names the layers of neurons whose emission by the end a value is. ``real``: operators
    on real numbers. ``beside`` keeps `thresholds_beside` of nodes, once they were asked for.
    """

    nodes: tuple[Node, ...]
    values: Mapping[int, Value]
    image_shape: tuple[int, ...]
    program: Program
    model: IntegerModel
    sources: Mapping[int, Any]
    levels: Mapping[int, str]
    time_steps: int = 1
    real: tuple[str, ...] = ()
    beside: dict[int, dict[str, Tensor] | None] = field(default_factory=dict)

    def node(self, op: str) -> Node:
        """The only node of a kind."""
        (node,) = [node for node in self.nodes if node.op == op]
        return node


def emitted_levels(item: Fire) -> tuple[Tensor, Tensor]:
    """Whole numbers from the least to the largest level, and what the first step emits for each."""
    steps = torch.arange(*(int(end) + step for step, end in enumerate(item.spec.limits)))
    return steps, totals_step(steps.float(), torch.zeros(len(steps)), item.spec).long()


def narrow_program(
    program: Program, item: Fire, values: Mapping[int, Value], inputs: tuple[int, ...]
) -> Program:
    """The program with what is known here of the values that a layer of neurons reads."""
    narrow = dict(program.values)
    for term, index in zip(item.input.terms, inputs, strict=True):
        narrow[term.value] = Whole(values[index].shape, values[index].low, values[index].high)
    return replace(program, values=narrow)


def formula_arrays(formula: Sum) -> dict[str, Tensor]:
    """The multipliers and the bias of a written sum, without the axis of images."""

    def one(factor: Any) -> Tensor:
        value: Tensor = factor.detach().float()
        return value[0] if value.dim() else value

    arrays = {
        f"multiplier_{index}": one(term.multiplier) for index, term in enumerate(formula.terms)
    }
    return arrays if formula.bias is None else arrays | {"bias": one(formula.bias)}
