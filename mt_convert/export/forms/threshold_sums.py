"""Whole numbers whose comparisons are the level of a written float32 formula."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...integer_engine.threshold_tables import ThresholdTable

INT32 = 2**31
MOST_COMBINATIONS = 4096  # of levels beside an accumulator, for which a sum is proved
MOST_BESIDE = 32  # of them, for which thresholds are told one by one
MOST_SHIFT = 16
MOST_PROVED = 2**22  # thresholds compared at once while a sum is proved


def threshold_sum(
    table: ThresholdTable, levels: Tensor, bounds: Sequence[tuple[int, int]]
) -> dict[str, Tensor] | None:
    """Whole numbers whose comparisons are the level of the written float32 formula.

    With u = sum_i factor_i[c] x_i the level is that of the first, plus the number of thresholds[c]
    with u >= threshold. ``place`` says which row c a neuron has. Of one accumulator the factor is
    ±1; of an accumulator with levels beside it ±2^p, with the least p for which all (threshold,
    level) pairs agree: then it is no approximation. A threshold whose level rises by several
    stands there as often. Of a function ``falls`` are the thresholds at which the level falls by
    one. None where no p is proved.
    """
    grid = other_levels([pair for index, pair in enumerate(bounds) if index != table.free])
    if grid is None:
        return None
    limit = max(-bounds[table.free][0], bounds[table.free][1])
    jumps, rows = levels.diff(), []
    for chosen, rising, sign in _beside(table, grid):
        part = _prove(table, chosen, rising, sign, grid, limit)
        if part is None:
            return None
        rows.append(part)
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    if table.is_function:
        joined |= _ups_and_downs(table, joined, bounds)
    else:
        joined["thresholds"] = joined["thresholds"].repeat_interleave(jumps, 1)
    joined["place"] = _compact(table.places)
    return {name: array.int() for name, array in joined.items()}


def thresholds_beside(
    table: ThresholdTable, levels: Tensor, bounds: Sequence[tuple[int, int]]
) -> dict[str, Tensor] | None:
    """The thresholds of an accumulator for each level beside it, where no sum of both is proved.

    Where the other inputs are grid[g], the level is that of the first, plus the number of
    thresholds[c, g] with factor[c] x >= threshold; x is the input of number ``free``. None where
    more than `MOST_BESIDE` levels can stand there.

    Shapes: thresholds [rows, grid, n], grid [grid, inputs beside], factor [rows], free [].
    """
    grid = other_levels([pair for index, pair in enumerate(bounds) if index != table.free])
    if grid is None or len(grid) > MOST_BESIDE or table.is_function:
        return None
    parts = [(rising, sign) for _, rising, sign in _beside(table, grid)]
    thresholds = torch.cat([rising for rising, _ in parts]).repeat_interleave(levels.diff(), 2)
    found = {"thresholds": thresholds, "factor": torch.cat([sign for _, sign in parts])}
    found |= {"grid": grid, "free": torch.tensor(table.free), "place": _compact(table.places)}
    return {name: array.int() for name, array in found.items()}


def _beside(table: ThresholdTable, grid: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows at a time, their thresholds [rows, grid, n] times their signs, and these [rows]."""
    count, combinations = int(table.places.max()) + 1, len(grid)
    step = max(1, MOST_PROVED // (combinations * max(table.count, 1)))
    for start in range(0, count, step):
        chosen = torch.arange(start, min(count, start + step))
        index = chosen.repeat_interleave(combinations)[:, None]
        thresholds, falling = table.thresholds(torch.cat([index, grid.repeat(len(chosen), 1)], 1))
        sign = torch.where(falling, -1, 1)
        rising = (thresholds * sign[:, None]).unflatten(0, (len(chosen), combinations))
        yield chosen, rising, sign[::combinations]


def _ups_and_downs(
    table: ThresholdTable, arrays: Mapping[str, Tensor], bounds: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """Thresholds of a function where its level rises, and those where it falls, each row filled up
    with some that no sum reaches. Rows whose first level is above the least one begin with some
    that every sum reaches.
    """
    thresholds = arrays["thresholds"]
    weights, start = table.weights(torch.arange(len(thresholds))[:, None])
    reach = sum(
        arrays[f"factor_{index}"].abs() * max(-low, high)
        for index, (low, high) in enumerate(bounds)
    )
    assert isinstance(reach, Tensor)
    columns: dict[str, list[Tensor]] = {"thresholds": [], "falls": []}
    for row, limit in enumerate(reach.tolist()):
        always = thresholds.new_full((int(start[row] - start.min()),), -limit)
        columns["thresholds"].append(torch.cat([always, thresholds[row, weights[row] > 0]]))
        columns["falls"].append(thresholds[row, weights[row] < 0])
    made = {}
    for name, rows in columns.items():
        wide = (reach[:, None] + 1).repeat(1, max(map(len, rows)))
        for row, numbers in enumerate(rows):
            wide[row, : len(numbers)] = numbers
        if name == "thresholds" or wide.shape[1]:
            made[name] = wide
    return made


def other_levels(values: Sequence[tuple[int, int]]) -> Tensor | None:
    """All combinations of what can stand beside an accumulator; None where they are too many.

    Shapes: int64 [combinations, values]; without values one empty combination.

    Example:
        >>> other_levels([(0, 1), (5, 6)]).tolist()
        [[0, 5], [0, 6], [1, 5], [1, 6]]
    """
    combinations = math.prod(high - low + 1 for low, high in values)
    if combinations > MOST_COMBINATIONS:
        return None
    if not values:
        return torch.zeros(1, 0, dtype=torch.long)
    ranges = [torch.arange(low, high + 1) for low, high in values]
    return torch.cartesian_prod(*ranges).reshape(combinations, len(values))


def _prove(
    table: ThresholdTable,
    rows: Tensor,
    rising: Tensor,
    sign: Tensor,
    grid: Tensor,
    limit: int,
) -> dict[str, Tensor] | None:
    """The least shift of each row for which every threshold agrees at every level beside it.

    Shapes: rising [rows, combinations, thresholds], grid [combinations, values beside].
    """
    free = f"factor_{table.free}"
    if not grid.shape[1]:
        return {free: sign, "thresholds": rising[:, 0]}
    slope = table.multiplier(table.free, rows).double().abs()
    indices = [index for index in range(table.terms) if index != table.free]
    ratios = torch.stack([table.multiplier(index, rows).double() / slope for index in indices], 1)
    if not bool(ratios.isfinite().all()):
        return None
    best: dict[str, Tensor] = {}
    left = torch.ones(len(rows), dtype=torch.bool)
    for shift in range(MOST_SHIFT + 1):
        factors = torch.round(ratios * 2**shift).clamp(-INT32, INT32).long()
        beside = factors @ grid.T
        upper = ((rising << shift) + beside[..., None]).amin(1)
        lower = (((rising - 1) << shift) + beside[..., None]).amax(1)
        fits = beside.abs().amax(1) + ((limit + 1) << shift) < INT32
        proved = left & (lower < upper).all(1) & fits
        arrays = {free: sign << shift, "thresholds": upper}
        arrays |= {f"factor_{index}": factors[:, at] for at, index in enumerate(indices)}
        for name, array in arrays.items():
            where = proved.reshape(-1, *[1] * (array.dim() - 1))
            best[name] = torch.where(where, array, best.get(name, torch.zeros_like(array)))
        left &= ~proved
        if not bool(left.any()):
            return best
        if bool((left & ~fits).any()):
            return None
    return None


def _compact(places: Tensor) -> Tensor:
    """The same with one entry along each axis on which it does not change."""
    for axis in range(places.dim()):
        first = places.narrow(axis, 0, 1)
        places = first if bool((places == first).all()) else places
    return places
