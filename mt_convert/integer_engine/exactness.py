"""Is a backend exact? Inputs next to thresholds, layer by layer; and whole networks on images.

`next_to_thresholds` builds programs in which every single neuron stands within a few units in the
last place of a threshold, ties included: where a fused multiplication and addition, another order
of additions, a reciprocal or a sum cut short would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..neurons.ladder import Uniform
from ..neurons.spec import NeuronSpec
from ..neurons.step_table import StepTable
from . import torch_backend
from .model import IntegerModel, IntegerRun
from .program import Accumulate, Encode, Fire, Operate, Program, ReadOut, Slot, Sum, Term, Whole
from .terms import in_exact_type, written_sum

LEVELS = 15
ULPS = 4
GEOMETRY: dict[str, tuple[int, int, int, int]] = {  # kernel, stride, padding, groups (0: depthwise)
    "convolution 3x3": (3, 1, 1, 1),
    "convolution 1x1": (1, 1, 0, 1),
    "convolution 7x7, stride 2": (7, 2, 3, 1),
    "grouped convolution": (3, 1, 1, 4),
    "depthwise convolution": (3, 1, 1, 0),
    "depthwise convolution, stride 2": (5, 2, 2, 0),
}
LAYERS = (*GEOMETRY, "linear", "residual levels", "two accumulators")


@dataclass(frozen=True)
class Difference:
    """How many of so many neurons, steps and images were not those of the reference."""

    compared: int
    different: int


def next_to_thresholds(
    layer: str,
    channels: int = 64,
    side: int = 16,
    bits: int = 4,
    seed: int = 0,
    images: int = 1,
    table: StepTable | None = None,
) -> tuple[Program, Tensor]:
    """A program of one layer, and an image on which all its neurons are next to a threshold: at
    most a few units in the last place away, some of them exactly on it.

    ``layer``: one of `LAYERS`. ``images``: several, each with biases of its own, for backends that
    run torch's operators, which take them. ``table``: neurons of a function, in the place of whole
    thresholds. Shapes: [images, channels, side, side]; linear [images, channels].

    Example:
        >>> program, image = next_to_thresholds("linear", channels=8)
        >>> logits, totals = torch_backend.step(program, image, {})
        >>> 0 <= float(totals["neurons"].min()), float(totals["neurons"].max()) <= LEVELS
        (True, True)
    """
    random = torch.Generator().manual_seed(seed)
    shape = (channels,) if layer == "linear" else (channels, side, side)
    image = torch.randint(0, LEVELS + 1, (images, *shape), generator=random).float()
    values = {0: Whole(shape, -float("inf"), float("inf")), 1: Whole(shape, 0, LEVELS)}
    instructions: list[Any] = [Encode(1, torch.ones(()), (0, LEVELS))]
    sources = [_random_layer(layer, channels, bits, random, 2)]
    if layer == "two accumulators":
        sources.append(_random_layer(layer, channels, bits, random, 3))
    instructions += sources
    numbers: dict[int, Any] = {0: image, 1: image}
    for item in sources:
        held = in_exact_type(image, item.limit)
        numbers[item.out] = torch_backend.weighted_sums(held, item.weight, item.geometry)
        values[item.out] = Whole(tuple(numbers[item.out].shape[1:]), -item.limit, item.limit)
    read = [item.out for item in sources] + ([1] if layer == "residual levels" else [])
    formula = _bias_to_threshold([numbers[index] for index in read], read, random, table)
    low, high = (0, LEVELS) if table is None else map(int, table.levels.aminmax())
    low, high, out = min(low, 0), max(high, 0), len(values)
    values[out] = Whole(values[2].shape, low, high)
    spec = NeuronSpec(Uniform(max(high, -low)), signed=low < 0, bounds=(low, high))
    instructions.append(Fire(out, "neurons", formula, None, spec, table=table))
    axes = tuple(range(2, numbers[2].dim()))
    if axes:
        pooled = Whole((channels,), low * side * side, high * side * side)
        instructions.append(Operate((out + 1,), Tensor.sum, (Slot(out), axes), {}))
        values[out + 1], out = pooled, out + 1
    ones = torch.ones(1, 1)
    instructions.append(ReadOut(Sum((Term(out, ones),), None)))
    return Program(tuple(instructions), values, ()), image


def _random_layer(
    layer: str, channels: int, bits: int, random: torch.Generator, out: int
) -> Accumulate:
    """A weighted layer with random weights of so many bits."""
    kernel, stride, padding, groups = GEOMETRY.get(layer, (3, 1, 1, 1))
    groups = groups or channels
    most = 2 ** (bits - 1) - 1
    shape = (channels, channels // groups, kernel, kernel)
    geometry: tuple[Any, ...] = ((stride,) * 2, (padding,) * 2, (1, 1), groups)
    if layer == "linear":
        shape, geometry = (channels, channels), ()  # type: ignore[assignment]
    weight = torch.randint(-most, most + 1, shape, generator=random).to(torch.int8)
    limit = float(weight.abs().double().flatten(1).sum(1).max()) * LEVELS
    return Accumulate(out, f"layer {out}", 1, weight, geometry, limit)


def _bias_to_threshold(
    numbers: list[Tensor], read: list[int], random: torch.Generator, table: StepTable | None
) -> Sum:
    """The written sum whose bias puts each neuron next to a threshold, or on it."""
    shape = [1, -1, *[1] * (numbers[0].dim() - 2)]
    channels = numbers[0].shape[1]
    multipliers = [
        (torch.rand(channels, generator=random) * 0.1 + 1e-3).reshape(shape) for _ in read
    ]
    multipliers[0][0, ::3] *= -1  # batch norm can turn signs
    if table is None:
        goal = torch.randint(1, LEVELS + 1, numbers[0].shape, generator=random) - 0.5
    else:
        goal = _any_threshold(table, numbers[0].shape, random)
    bias = goal - written_sum(numbers, multipliers, None)
    for _ in range(3):  # the order of rounding moves it: correct what is left
        bias = bias + (goal - written_sum(numbers, multipliers, bias))
    away = torch.randint(-ULPS, ULPS + 1, goal.shape, generator=random)
    for step in range(1, ULPS + 1):
        aim = torch.where(away > 0, torch.inf, -torch.inf)
        bias = torch.where(away.abs() >= step, bias.nextafter(aim), bias)
    terms = [Term(index, factor) for index, factor in zip(read, multipliers, strict=True)]
    return Sum(tuple(terms), bias)


def _any_threshold(table: StepTable, shape: torch.Size, random: torch.Generator) -> Tensor:
    """One of its thresholds for each neuron, of those that count."""
    rows = table.thresholds.expand(shape[1], -1)
    counted = (table.weights != 0).sum(1).expand(shape[1])
    draws = torch.rand(shape, generator=random).movedim(1, 0).flatten(1)
    index = (draws * counted[:, None]).long()
    goal = rows.gather(1, index).reshape(shape[1], shape[0], *shape[2:])
    return goal.movedim(0, 1)


def layer_difference(make: Callable[[list[Program]], Any], layer: str, **size: Any) -> Difference:
    """A backend, made from programs by ``make``, on one layer next to its thresholds."""
    program, image = next_to_thresholds(layer, **size)
    _, expected = torch_backend.step(program, image, {})
    _, totals = make([program]).run(image, 1, True)
    apart = totals["neurons"] != expected["neurons"]
    return Difference(apart.numel(), int(apart.sum()))


def network_difference(
    model: IntegerModel, reference: IntegerModel, batches: Iterable[Tensor], time_steps: int
) -> Difference:
    """Levels emitted by all neurons by the end, and logits behind every step, on images."""
    compared = different = 0
    for images in batches:
        one, two = (item.run(images, time_steps, totals=True) for item in (model, reference))
        difference = run_difference(one, two)
        compared, different = compared + difference.compared, different + difference.different
    return Difference(compared, different)


def run_difference(one: IntegerRun, two: IntegerRun) -> Difference:
    """Two runs of the same network on the same images, number by number."""
    pairs = [(one.logits, two.logits)]
    pairs += [(one.totals[name], total) for name, total in two.totals.items()]
    compared = sum(theirs.numel() for _, theirs in pairs)
    return Difference(compared, sum(int((own != theirs).sum()) for own, theirs in pairs))
