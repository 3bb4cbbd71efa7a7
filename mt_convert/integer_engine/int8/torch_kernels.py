"""Kernels for a program in plain torch that give the reference's numbers in less time.

Sums of weighted layers come from int8 products (`int8_layers` on a CPU that has VNNI, `int8_matmul`
on accelerators), neurons fire in the memory of the sums they read, and pools take channels as they
lie.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...neurons.ladder import Binary, Uniform
from ..arithmetic import weighted_sums
from ..program import Accumulate, Fire, Operate, Program, ReadOut, slots
from ..terms import FLOAT32_WHOLE, in_exact_type
from ..torch_backend import Firing, Kernels, Operating, fill_arguments, fire, operate
from . import int8_layers, int8_matmul

aten = torch.ops.aten
_ANY_LAYOUT = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.cat.default, torch.cat}
_ANY_LAYOUT |= {Tensor.sum, aten.amax.default}
CHUNK = 2**18  # numbers of the largest value of the images that go through all layers together


def fast_kernels(program: Program) -> Kernels:
    """The kernels for one program."""
    narrow = int8_layers.layers(program)
    in_products = in_int8(program)
    own = _read_once(program)
    firing = {
        item.out: _in_place(item, program, own)
        for item in program.instructions
        if isinstance(item, Fire)
    }

    def layer(item: Accumulate, numbers: Tensor) -> Tensor:
        if numbers.device.type != "cpu":
            return in_products(item, numbers)
        if item.out in narrow and numbers.numel():
            return narrow[item.out](numbers)
        return weighted_sums(in_exact_type(numbers, item.limit), item.weight, item.geometry)

    return Kernels(
        layer, lambda item, *state: firing[item.out](item, *state), fast_operators(program)
    )


def fast_operators(program: Program) -> Operating:
    """What runs the operators of one program: products of two activations in int8."""
    products, pools = _products(program), _pools(program)

    def run(item: Operate, values: dict[int, Any], batch: int) -> None:
        out = item.out[0]
        if out in pools:
            args, kwargs = (
                fill_arguments(part, values, batch) for part in (item.args, item.kwargs)
            )
            values.update({out: item.target(*args, **kwargs)})
        elif out in products and int8_layers.worth(*(pair := [values[k] for k in products[out]])):
            values.update({out: int8_layers.product(*pair)})
        else:
            operate(item, values, batch)

    return run


def in_int8(program: Program) -> Any:
    """Weighted layers as products of int8 matrices; those that do not fit in float64."""

    def layer(item: Accumulate, numbers: Tensor) -> Tensor:
        whole = program.values[item.value]
        if int8_matmul.fits(item, whole):
            return in_floats(int8_matmul.product(item, numbers, whole), item.limit)
        return weighted_sums(numbers.double(), item.weight, item.geometry)

    return layer


def in_floats(numbers: Tensor, limit: float) -> Tensor:
    """Whole numbers up to ``limit`` in float32 where that is exact, otherwise in float64."""
    return numbers.float() if limit < FLOAT32_WHOLE else numbers.double()


def images_at_once(programs: Sequence[Program]) -> int | None:
    """How many images may go through all layers together so that values stay in a CPU's cache; None
    where images have to stay together, as operators on real numbers may see how many there are.
    """
    largest = 1
    for program in programs:
        fired = [
            program.values[item.out] for item in program.instructions if isinstance(item, Fire)
        ]
        if program.real or any(math.isinf(whole.high) for whole in fired):
            return None
        largest = max([largest, *(math.prod(whole.shape) for whole in program.values.values())])
    return max(1, CHUNK // largest)


def _pools(program: Program) -> set[int]:
    """What operators make that take whole numbers as they lie in memory."""
    return {
        item.out[0]
        for item in program.instructions
        if isinstance(item, Operate) and item.target in _ANY_LAYOUT
        if all(program.values[k].high < math.inf for k in slots([item.args, item.kwargs]))
    }


def _products(program: Program) -> dict[int, tuple[int, ...]]:
    """What products of two activations make that fit int8, and the values that they read."""
    found: dict[int, tuple[int, ...]] = {}
    for item in program.instructions:
        if not isinstance(item, Operate) or item.target not in int8_layers.PRODUCTS:
            continue
        read = tuple(slots(item.args))
        if len(read) == 2 and int8_layers.product_fits(*(program.values[k] for k in read)):
            found[item.out[0]] = read
    return found


def _read_once(program: Program) -> frozenset[int]:
    """Sums of weighted layers that one instruction reads, once: it may write where they lie."""
    counts = Counter[int]()
    for item in program.instructions:
        if isinstance(item, Accumulate):
            counts[item.value] += 1
        elif isinstance(item, Operate):
            counts.update(slots([item.args, item.kwargs]))
        elif isinstance(item, (Fire, ReadOut)):
            for term in item.input.terms:
                counts.update([term.value, *slots([term.multiplier])])
            counts.update(slots([item.input.bias]))
    sums = {item.out for item in program.instructions if isinstance(item, Accumulate)}
    return frozenset(value for value in sums if counts[value] == 1)


def _in_place(item: Fire, program: Program, own: frozenset[int]) -> Firing:
    """`torch_backend.fire` for whole thresholds one level apart, in as few passes as it takes."""
    spec, shapes = item.spec, {index: whole.shape for index, whole in program.values.items()}
    constants = [term.multiplier for term in item.input.terms]
    constants += [] if item.input.bias is None else [item.input.bias]
    whole = isinstance(spec.ladder, (Uniform, Binary)) and item.together
    whole = whole and item.table is None and item.offset is None
    whole = whole and all(isinstance(part, Tensor) for part in constants)
    if not whole or any(shapes[term.value] != shapes[item.out] for term in item.input.terms):
        return fire
    low, high = spec.limits
    up = spec.ladder.reach
    down = -up if spec.signed else 0
    least, most = max(low, down), min(high, up)  # both bounds hold 0
    terms = [(term.value, term.value in own, term.multiplier) for term in item.input.terms]
    bias, window = item.input.bias, bool(item.window)

    def run(item: Fire, values: Mapping[int, Any], before: Tensor | None) -> Tensor:
        """`terms.written_sum`, in the memory of sums that nobody else reads, and the step."""
        total: Any = None
        for value, mine, factor in terms:
            numbers = values[value]
            if mine and numbers.dtype == torch.float32:
                product = numbers.mul_(factor)
            else:
                product = numbers.float() * factor
            if total is not None:
                total.add_(product)
                continue
            total = product if bias is None else product.add_(bias)
        total.round_()
        if before is None or window:
            return total.clamp_(least, most)
        return total.clamp_(low, high).sub_(before).clamp_(down, up).add_(before)

    return run
