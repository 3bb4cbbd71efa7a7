"""Where everything lies in the arena of one image."""

from __future__ import annotations

from typing import Any

from ..program import Fire
from .layout import BYTES, DEPTHWISE, DOT, LOAD, Value
from .plans import Plans, outputs


class Arena:
    """Places for all values that segments make or read, but ``inner`` ones, and what neurons keep.

    Attributes:
        number: of a value among the kernels' ``values``. targets, unsettled: offsets of the targets
        of neurons, and of marks of rows that may still move, by instruction. size: in bytes.
        marks: the offset of all marks, and how many.
    """

    def __init__(self, plans: Plans, inner: set[int]) -> None:
        self.plans = plans
        borders: dict[int, int] = {}
        for place, plan in plans.plans.items():
            if plan.kind is None:
                continue
            results = outputs(plans.items[place])
            read = () if plan.kind == LOAD else plan.sources
            for value in (*results, *read):
                if value not in inner:
                    borders.setdefault(value, 0)
            if plan.kind in (DOT, DEPTHWISE):
                widest = max(plan.window.padding)
                borders[plan.sources[0]] = max(borders[plan.sources[0]], widest)
        self.number = {value: index for index, value in enumerate(borders)}
        self.values = (Value * max(len(borders), 1))()
        end = 0
        for value, border in borders.items():
            end = self._place(self.values[self.number[value]], value, border, end)
        self.targets: dict[int, int] = {}
        fires = [place for place in plans.plans if isinstance(plans.items[place], Fire)]
        for place in fires:
            grid = plans.require_grid(outputs(plans.items[place])[0])
            self.targets[place] = end
            end += align(2 * grid.pixels * grid.channels + 64)
        first_mark = end
        for value in borders:
            self.values[self.number[value]].changed = end
            end += 3 * plans.require_grid(value).height
        self.unsettled: dict[int, int] = {}
        for place in fires:
            self.unsettled[place] = end
            end += 3 * plans.require_grid(outputs(plans.items[place])[0]).height
        end += 3  # whether any neuron may still move
        self.marks = first_mark, end - first_mark
        self.size = align(end + 64)

    def _place(self, struct: Any, value: int, border: int, start: int) -> int:
        """Where a value lies, and where it ends."""
        grid, kind = self.plans.require_grid(value), self.plans.kind(value)
        low = int(min(self.plans.bounds[value][0], 0))
        size = 1 if kind == BYTES else 4
        pixel = align(grid.channels, 4 if kind == BYTES else 16)
        border = border if kind == BYTES else 0
        row = (grid.width + 2 * border) * pixel
        total = align((grid.height + 2 * border) * row * size + 64)
        offset = start + (border * row + border * pixel) * size
        for name, number in {
            **{"offset": offset, "start": start, "bytes": total, "kind": kind},
            **{"height": grid.height, "width": grid.width, "channels": grid.channels},
            **{"row": row, "pixel": pixel, "low": low if kind == BYTES else 0},
        }.items():
            setattr(struct, name, number)
        return start + total


def align(size: int, to: int = 64) -> int:
    """The next multiple."""
    return -(-size // to) * to
