"""Which instructions become one call of the kernels, and which of them one op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..program import Accumulate, Fire, ReadOut
from .plans import Plans, inputs


@dataclass(frozen=True)
class OpNote:
    """What an op does: multiply-adds for an image, bytes of weights and of what is read and written
    of an image."""

    name: str
    kind: str
    macs: int = 0
    weights: int = 0
    moved: int = 0


@dataclass
class Segment:
    """Ops of each program, and the values to fetch from torch before and to hand to it after."""

    items: list[int]
    ops: list[Any] = field(default_factory=list)
    notes: list[OpNote] = field(default_factory=list)  # of the ops
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def segments(plans: Plans) -> list[Segment | int]:
    """Runs of planned instructions; the others by index."""
    work: list[Segment | int] = []
    for place in range(len(plans.items)):
        if place not in plans.plans:
            work.append(place)
        elif work and isinstance(work[-1], Segment):
            work[-1].items.append(place)
        else:
            work.append(Segment([place]))
    return work


def layers_to_fuse(plans: Plans, work: Sequence[Segment | int]) -> dict[int, int]:
    """Layers whose sums one other instruction of the segment reads, by that instruction."""
    idle = {place for place, plan in plans.plans.items() if plan.kind is None}
    uses = Counter(
        plans.roots[value]
        for place, item in enumerate(plans.items)
        for value in inputs(item)
        if place not in idle
    )
    layer_of = {}
    for segment in work:
        if isinstance(segment, int):
            continue
        for place in segment.items:
            item = plans.items[place]
            if not isinstance(item, (Fire, ReadOut)):
                continue
            layers = [
                layer
                for value in plans.plans[place].sources
                if (layer := plans.producers.get(value)) in segment.items and uses[value] == 1
                if isinstance(plans.items[layer], Accumulate)
            ]
            if layers:
                layer_of[place] = max(layers)
    return layer_of
