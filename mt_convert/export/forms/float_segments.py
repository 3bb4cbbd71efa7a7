"""Operators on real numbers between layers of whole numbers: norms, softmax, products of values.

The integer engine runs such operators in float32, and neurons behind them make whole numbers again.
Here they are nodes ``float``: one of torch's operators, or several in a row where what lies between
them does not have its images in front. Constants among their arguments are arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...integer_engine import threshold_tables as tables
from ...integer_engine import torch_backend
from ...integer_engine.program import Operate, slots


@dataclass(frozen=True)
class Constant:
    """The place of array ``constant_INDEX`` among the arguments of an operator."""

    index: int


@dataclass(frozen=True)
class Segment:
    """Operators in order, what they read by the numbers of the program, and each one's type."""

    operators: tuple[Operate, ...]
    reads: Mapping[int, torch.dtype]

    def values(self, given: Mapping[int, Tensor], batch: int) -> dict[int, Tensor]:
        """Everything that the operators make."""
        values: dict[int, Any] = dict(given)
        for item in self.operators:
            torch_backend.operate(item, values, batch)
        return values

    def sample(self, shapes: Mapping[int, Sequence[int]], batch: int = 2) -> dict[int, Tensor]:
        """What they make of zeros: shapes and types."""
        given = {
            index: torch.zeros(batch, *shapes[index], dtype=kind)
            for index, kind in self.reads.items()
        }
        return self.values(given, batch)

    def places(self, out: int, shapes: Mapping[int, Sequence[int]]) -> Tensor | None:
        """Where each entry of one image of what they make comes from, counted through all that
        they read from 1; None unless they move numbers within each image.

        Shapes: int64, that of value ``out`` for one image.
        """
        if not self.reads or any(item.target not in tables.MOVES for item in self.operators):
            return None
        if any(True for item in self.operators for _ in tensors((item.args, item.kwargs))):
            return None
        given, start = {}, 1
        for index in self.reads:
            numbers = torch.arange(torch.Size(shapes[index]).numel(), dtype=torch.float64)
            given[index] = (numbers + start).reshape(1, *shapes[index])
            start += numbers.numel()
        two = {index: torch.cat([one, one + (start - 1)]) for index, one in given.items()}
        single, double = self.values(given, 1)[out].long(), self.values(two, 2)[out].long()
        moved = torch.where(single == 0, 0, single + (start - 1))
        return single[0] if torch.equal(double, torch.cat([single, moved])) else None


def tensors(part: Any) -> list[Tensor]:
    """The constants among arguments, in order."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        return [one for item in part for one in tensors(item)]
    return []


def take_constants(operators: Sequence[Operate]) -> tuple[list[Operate], dict[str, Tensor]]:
    """The operators with places for their constants, and these."""
    arrays: dict[str, Tensor] = {}

    def take(part: Any) -> Any:
        if isinstance(part, Tensor):
            arrays[f"constant_{len(arrays)}"] = part.detach()
            return Constant(len(arrays) - 1)
        return _map(part, take)

    made = [
        Operate(one.out, one.target, take(one.args), take(dict(one.kwargs))) for one in operators
    ]
    return made, arrays


def put_constants(part: Any, constant: Any) -> Any:
    """Arguments with ``constant(index)`` in the places of constants."""
    if isinstance(part, Constant):
        return constant(part.index)
    return _map(part, lambda one: put_constants(one, constant))


def _map(part: Any, change: Any) -> Any:
    if isinstance(part, Mapping):
        return {name: change(value) for name, value in part.items()}
    if isinstance(part, (list, tuple)) and not isinstance(part, torch.Size):
        return type(part)(change(value) for value in part)
    return part


def read_by(operators: Sequence[Operate]) -> list[int]:
    """The values that operators read and do not make themselves, in order."""
    made = {index for item in operators for index in item.out}
    read = [index for item in operators for index in slots((item.args, item.kwargs))]
    return [index for index in dict.fromkeys(read) if index not in made]
