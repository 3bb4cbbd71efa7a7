"""A program in plain torch, on any device: the reference, and what makes it fast.

Whole numbers are held in float32 (float64 past 2^24, and on accelerators, whose float32 products
may be shortened): products and sums of them are exact. `REFERENCE` are the written formulas alone;
`torch_kernels` has others that give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..graph.by_values import call
from ..neurons.totals import totals_step
from .arithmetic import weighted_sums
from .program import Accumulate, Encode, Fire, Operate, Program, Slot, Sum
from .terms import BATCH, in_exact_type, written_sum

Totals = dict[str, Tensor]
Layer = Callable[[Accumulate, Tensor], Tensor]
Firing = Callable[[Fire, Mapping[int, Any], Tensor | None], Tensor]
Operating = Callable[[Operate, dict[int, Any], int], None]
Step = Callable[[Tensor, Totals], tuple[Tensor, Totals]]


def accumulate(item: Accumulate, numbers: Tensor) -> Tensor:
    """A layer's products and sums in a floating type in which they are exact."""
    return weighted_sums(in_exact_type(numbers, item.limit), item.weight, item.geometry)


def step(
    program: Program,
    images: Tensor,
    before: Mapping[str, Tensor],
    kernels: Kernels | None = None,
) -> tuple[Tensor, Totals]:
    """The logits of one step and the totals behind it; ``before`` are those of the last step."""
    kernels = kernels or REFERENCE
    totals: Totals = {}
    values: dict[int, Any] = {0: images}
    for item in program.instructions:
        if isinstance(item, Encode):
            levels = torch.round(images / item.scale).clamp(*item.bounds)
            values[item.out] = levels.contiguous()
        elif isinstance(item, Accumulate):
            values[item.out] = kernels.layer(item, values[item.value])
        elif isinstance(item, Fire):
            totals[item.name] = kernels.fire(item, values, before.get(item.name))
            values[item.out] = totals[item.name]
        elif isinstance(item, Operate):
            kernels.operate(item, values, len(images))
        else:
            return real_sum(item.input, values), totals
    raise AssertionError("a program ends with its read-out")


def fire(item: Fire, values: Mapping[int, Tensor], before: Tensor | None) -> Tensor:
    """The running total behind this step, or behind a window."""
    before = None if item.window else before  # a window begins afresh
    one_by_one = item.window and not item.together
    steps = item.window if one_by_one else ((item.input, item.spec),)
    tables = item.tables if one_by_one and item.tables else (item.table,) * len(steps)
    for (formula, spec), table in zip(steps, tables, strict=True):
        drive = real_sum(formula, values)
        if table is not None:
            drive = table(drive)
        if item.offset is not None:
            drive = drive + item.offset
        start = torch.full_like(drive, spec.start) if before is None else before
        before = totals_step(drive, start, spec)
    assert before is not None
    return before


def real_sum(formula: Sum, values: Mapping[int, Tensor]) -> Tensor:
    """A written sum of values."""
    numbers = [values[term.value] for term in formula.terms]
    factors = [fill_arguments(term.multiplier, values, 1) for term in formula.terms]
    return written_sum(numbers, factors, fill_arguments(formula.bias, values, 1))


def operate(item: Operate, values: dict[int, Any], batch: int) -> None:
    """Any other operator, by its own function."""
    args, kwargs = (fill_arguments(part, values, batch) for part in (item.args, item.kwargs))
    result = call(item.target, args, kwargs)
    pieces = [result] if isinstance(result, Tensor) else result
    values.update(zip(item.out, pieces, strict=True))


def fill_arguments(part: Any, values: Mapping[int, Any], batch: int) -> Any:
    """Arguments with values for slots and the number of images for `BATCH`."""
    if isinstance(part, Slot):
        return values[part.index]
    if type(part) is int:
        return part // BATCH * batch if part and part % BATCH == 0 else part
    if isinstance(part, Mapping):
        return {name: fill_arguments(value, values, batch) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [fill_arguments(value, values, batch) for value in part]
    return part


@dataclass(frozen=True)
class Kernels:
    """What makes sums of weighted layers, what fires neurons, what runs any other operator."""

    layer: Layer = accumulate
    fire: Firing = fire
    operate: Operating = operate


REFERENCE = Kernels()
