"""Several time steps of a network as one program, and what its neurons keep between them.

A step computes everything anew from what neurons have emitted so far, so steps differ in one thing:
a layer moves from what it had emitted towards the level that its input asks for now, as far as its
ladder lets it in one step. That is two nodes of whole numbers: ``fire``, the level asked for, and
``emit``, the move. What an ``emit`` adds hangs on the distance alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...integer_engine.program import (
    Accumulate,
    Encode,
    Fire,
    Instruction,
    Operate,
    Program,
    ReadOut,
    Slot,
    Sum,
)
from ...neurons.ladder import Uniform
from ...neurons.spec import NeuronSpec
from ...neurons.totals import totals_step


@dataclass(frozen=True)
class Emission:
    """What a layer adds to what it has emitted, by the distance to the level that is asked for.

    ``least`` and ``most`` are the ends of what is added. ``steps`` has it for each distance from
    ``-span`` to ``span``; where it is None the distance itself is added, cut at both ends.

    Shapes: steps int32 [2 span + 1].
    """

    span: int
    least: int
    most: int
    steps: Tensor | None


def unroll(programs: Sequence[Program]) -> list[Program]:
    """The steps of a network with values of their own, only the last of them with a read-out.

    Value 0 is the image in all of them; value i > 0 of step t is value i + t (values - 1), and each
    program knows the values of all.

    Example:
        >>> items = Encode(1, torch.ones(()), (0, 1)), ReadOut(Sum((), None))
        >>> one = Program(items, {0: None, 1: None}, ())
        >>> [[type(item).__name__ for item in step.instructions] for step in unroll([one, one])]
        [['Encode'], ['Encode', 'ReadOut']]
        >>> unroll([one, one])[1].instructions[0].out
        2
    """
    count = max(programs[0].values)
    values = {
        _move(index, t * count): value
        for t, program in enumerate(programs)
        for index, value in program.values.items()
    }
    return [
        Program(
            tuple(
                _renumber(item, t * count)
                for item in program.instructions
                if t == len(programs) - 1 or not isinstance(item, ReadOut)
            ),
            values,
            program.real,
        )
        for t, program in enumerate(programs)
    ]


def asked_for(item: Fire, out: int) -> Fire:
    """The level that the input of a layer asks for, whatever was emitted before: value ``out``."""
    low, high = item.spec.limits
    ladder = Uniform(int(max(-low, high, 1)))
    return replace(item, out=out, spec=NeuronSpec(ladder, signed=low < 0, bounds=item.spec.bounds))


def emission(spec: NeuronSpec) -> Emission:
    """What a layer adds in one step.

    Example:
        >>> emission(NeuronSpec(Uniform(3), signed=True, bounds=(0, 15)))
        Emission(span=15, least=-3, most=3, steps=None)
    """
    low, high = (int(end) for end in spec.limits)
    span = high - low
    distance = torch.arange(-span, span + 1)
    before = torch.where(distance < 0, high, low).double()
    steps = (totals_step(before + distance, before, spec) - before).long()
    least, most = int(steps.min()), int(steps.max())
    plain = torch.equal(steps, distance.clamp(least, most))
    return Emission(span, least, most, None if plain else steps.int())


def _move(index: int, by: int) -> int:
    return index + by if index else 0


def _renumber(item: Instruction, by: int) -> Instruction:
    """An instruction on the values of a later step."""
    if isinstance(item, Encode):
        return replace(item, out=_move(item.out, by))
    if isinstance(item, Accumulate):
        return replace(item, out=_move(item.out, by), value=_move(item.value, by))
    if isinstance(item, Fire):
        return replace(item, out=_move(item.out, by), input=_renumber_sum(item.input, by))
    if isinstance(item, Operate):
        out = tuple(_move(index, by) for index in item.out)
        args, kwargs = _renumber_slots(item.args, by), _renumber_slots(item.kwargs, by)
        return replace(item, out=out, args=args, kwargs=kwargs)
    return ReadOut(_renumber_sum(item.input, by))


def _renumber_sum(formula: Sum, by: int) -> Sum:
    terms = tuple(
        replace(
            term,
            value=_move(term.value, by),
            multiplier=_renumber_slots(term.multiplier, by),
        )
        for term in formula.terms
    )
    return Sum(terms, _renumber_slots(formula.bias, by))


def _renumber_slots(part: Any, by: int) -> Any:
    if isinstance(part, Slot):
        return Slot(_move(part.index, by))
    if isinstance(part, Mapping):
        return {name: _renumber_slots(value, by) for name, value in part.items()}
    if isinstance(part, (list, tuple)) and not isinstance(part, torch.Size):
        return type(part)(_renumber_slots(value, by) for value in part)
    return part
