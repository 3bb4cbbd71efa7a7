"""What single nodes are fed when a check runs them by themselves.

Neurons are fed accumulators at every threshold of every class of neurons and one beside it, on both
sides, for the levels that stand beside an accumulator too; sums of products random numbers, the
largest, the least, and those that drive a sum furthest; moves every pair of levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..integer_engine.threshold_tables import ThresholdTable
from .forms.nodes import IntegerForm, Node, narrow_program

BESIDE = 64  # combinations of what stands beside an accumulator that are fed, at most
FURTHEST = 16  # outputs that are driven as far as they go
ENDS = 3  # levels beside the ends, when a sum is driven as far as it goes
LARGEST = 2**22  # numbers at once
EACH = 2**19  # numbers, up to which neurons of one class do not share the work


def inputs_of(form: IntegerForm, node: Node) -> Iterator[tuple[list[Tensor], bool]]:
    """Inputs for one node, batch by batch, and whether they lie next to thresholds."""
    random = torch.Generator().manual_seed(node.out)
    if node.op == "encode":
        yield [_next_to_levels(node, form.image_shape, random)], False
        return
    values = [form.values[index] for index in node.inputs]
    draws = [
        torch.randn(6, *one.shape, generator=random)
        if one.real
        else torch.randint(one.low, one.high + 1, (6, *one.shape), generator=random)
        for one in values
    ]
    for draw, one in zip(draws, values, strict=True):
        if one.real:
            continue
        draw[1], draw[2] = one.low, one.high
        for place, number in enumerate((0, 1, -1), start=3):  # constants beside them show
            draw[place] = min(max(number, one.low), one.high)
    yield draws, False
    if node.op == "emit":
        yield _all_pairs(values), False
    if node.op in ("conv", "linear"):
        yield [_furthest(form, node, random)], False
    if node.op == "fire" and any(one.real for one in values):
        yield _next_to_real_thresholds(node, draws, values), True
    elif node.op == "fire":
        yield from ((batch, True) for batch in _next_to_thresholds(form, node, random))


def _next_to_levels(node: Node, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Pixels at the edges of levels and a few units in the last place beside them."""
    low, high = node.settings["low"], node.settings["high"]
    scale = node.arrays["scale"]
    levels = torch.randint(low - 1, high + 2, (16, *shape), generator=random)
    return _move_few_ulp((levels + 0.5) * scale, random)


def _move_few_ulp(numbers: Tensor, random: torch.Generator) -> Tensor:
    """Numbers, each up to three units in the last place up or down."""
    for _ in range(3):
        toward = torch.randint(-1, 2, numbers.shape, generator=random)
        moved = numbers.nextafter(torch.where(toward > 0, torch.inf, -torch.inf))
        numbers = torch.where(toward == 0, numbers, moved)
    return numbers


def _all_pairs(values: list[Any]) -> list[Tensor]:
    """Every level that is asked for beside every one that was emitted before."""
    pairs = torch.cartesian_prod(*(torch.arange(one.low, one.high + 1) for one in values))
    pairs = pairs.reshape(-1, len(values))
    shape, size = values[0].shape, values[0].size
    images = min(-(-len(pairs) // size), max(1, LARGEST // size))
    chosen = pairs[torch.arange(images * size) % len(pairs)]
    return [column.reshape(images, *shape) for column in chosen.unbind(1)]


def _next_to_real_thresholds(node: Node, draws: list[Tensor], values: list[Any]) -> list[Tensor]:
    """Real numbers at thresholds of neurons and a few units in the last place beside them, for what
    the others are."""
    arrays, low, high = node.arrays, node.settings["low"], node.settings["high"]
    (free, *_) = (index for index, one in enumerate(values) if one.real)
    count = max(2, min(64, LARGEST // max(1, values[free].size)))
    inputs = [one.repeat(-(-count // len(one)), *[1] * (one.dim() - 1))[:count] for one in draws]
    random = torch.Generator().manual_seed(node.out)
    rest = sum(
        one.double() * arrays[f"multiplier_{index}"].double()
        for index, one in enumerate(inputs)
        if index != free
    )
    for name in ("bias", "offset"):
        rest = rest + arrays[name].double() if name in arrays else rest
    levels = torch.randint(low - 1, high + 2, inputs[free].shape, generator=random)
    numbers = ((levels + 0.5 - rest) / arrays[f"multiplier_{free}"].double()).float()
    numbers = _move_few_ulp(numbers, random)
    inputs[free] = torch.where(numbers.isfinite(), numbers, 0.0)
    return inputs


def _furthest(form: IntegerForm, node: Node, random: torch.Generator) -> Tensor:
    """Levels that drive single outputs as far as they go, up and down, and levels up to `ENDS`
    beside them, whose sums have odd last bits: numbers that are too narrow lose those first."""
    (value,) = (form.values[index] for index in node.inputs)
    weight, groups = node.arrays["weight"].long(), node.settings.get("groups", 1)
    rows = torch.arange(0, len(weight), max(1, len(weight) // FURTHEST))
    summed = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    inputs = []
    for row in rows.tolist():
        signs = torch.zeros(value.shape[-1 if node.op == "linear" else 0]).long()
        start = row // (len(weight) // groups) * summed.shape[1]
        signs[start : start + summed.shape[1]] = summed[row].sign()
        line = torch.where(signs > 0, value.high, value.low)
        shape = [1] * len(value.shape)
        shape[-1 if node.op == "linear" else 0] = -1
        inputs.append(line.reshape(shape).expand(value.shape))
        inputs.append((value.high + value.low - line).reshape(shape).expand(value.shape))
    ends = torch.stack(inputs)
    inward = torch.randint(0, ENDS + 1, ends.shape, generator=random)
    beside = torch.where(ends > value.low, ends - inward, ends + inward)
    return torch.cat([ends, beside.clamp(value.low, value.high)])


def _next_to_thresholds(
    form: IntegerForm, node: Node, random: torch.Generator
) -> Iterator[list[Tensor]]:
    """Accumulators at each threshold of each class of neurons, one below and one above, for the
    levels beside them. Neurons of one class share the work: each is given other thresholds.
    """
    item = form.sources[node.out]
    table = ThresholdTable(item, narrow_program(form.program, item, form.values, node.inputs))
    values = [form.values[index] for index in node.inputs]
    beside = _beside([one for index, one in enumerate(values) if index != table.free], random)
    places = table.places.flatten()
    counts = torch.bincount(places)
    rank = _ranks(places, counts)
    free, shape = values[table.free], values[table.free].shape
    width = table.count * 3
    fewest = int(counts.min())
    if len(beside) * width * places.numel() <= EACH:
        rank, fewest = torch.zeros_like(rank), 1  # each neuron meets every threshold
    images = -(-len(beside) * width // fewest)
    step = max(1, LARGEST // max(1, places.numel()))
    classes = torch.arange(len(counts))
    by_class = {}
    for start in range(0, images, step):
        image = torch.arange(start, min(images, start + step))
        chosen = (image[:, None] * fewest + rank % fewest) % (len(beside) * width)
        combination, column = chosen // width, chosen % width
        numbers = torch.zeros_like(chosen)
        for index in combination.unique().tolist():
            if index not in by_class:
                rows = torch.cat([classes[:, None], beside[index].expand(len(classes), -1)], 1)
                by_class[index] = table.thresholds(rows)[0]
            here = combination == index
            all_of = by_class[index][places.expand_as(chosen), column // 3] + column % 3 - 1
            numbers = torch.where(here, all_of, numbers)
        inputs = [beside[combination, index] for index in range(beside.shape[1])]
        inputs.insert(table.free, numbers.clamp(free.low, free.high))
        yield [one.reshape(-1, *shape) for one in inputs]


def _beside(values: list[Any], random: torch.Generator) -> Tensor:
    """Combinations of what stands beside an accumulator: all of them, or some, the ends among
    them.

    Shapes: returns int64 [combinations, values].
    """
    if not values:
        return torch.zeros(1, 0, dtype=torch.long)
    sizes = [one.high - one.low + 1 for one in values]
    if math.prod(sizes) <= BESIDE:
        ranges = [torch.arange(one.low, one.high + 1) for one in values]
        return torch.cartesian_prod(*ranges).reshape(-1, len(values))
    columns = [
        torch.cat(
            [
                torch.tensor([one.low, one.high, min(max(0, one.low), one.high)]),
                torch.randint(one.low, one.high + 1, (BESIDE - 3,), generator=random),
            ]
        )
        for one in values
    ]
    return torch.stack(columns, 1)


def _ranks(places: Tensor, counts: Tensor) -> Tensor:
    """How many neurons of the same class stand in front of each."""
    order = torch.argsort(places, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(places)
    rank[order] = torch.arange(len(places)) - starts[places[order]]
    return rank
