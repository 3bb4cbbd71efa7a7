"""Which whole numbers of a form float32 holds, and sums that it holds in two parts."""

from __future__ import annotations

from ...integer_engine.terms import FLOAT32_WHOLE
from .nodes import IntegerForm, Node

FORMULAS = ("fire", "read_out")


def sum_fits(form: IntegerForm, node: Node) -> bool:
    """Whether float32 holds all numbers that a node reads and makes."""
    values = [form.values[index] for index in (*node.inputs, node.out)]
    return all(max(-value.low, value.high) < FLOAT32_WHOLE for value in values)


def furthest(form: IntegerForm, node: Node) -> float:
    """The largest sum of |products| of a weighted layer, whatever the order."""
    value = form.values[node.inputs[0]]
    return gain_of(node) * max(-value.low, value.high)


def split_unit(form: IntegerForm, node: Node) -> int | None:
    """Of a weighted layer whose sums float32 does not hold, the power of two, ``unit``, that cuts
    what it reads, so that float32 holds the sums of both parts:

        x = high * unit + low,   low in [0, unit)

    Their sum is rounded once, as who reads the layer rounds it: formulas of float32. None where
    somebody else reads it, or no power of two is enough.
    """
    readers = {one.op for one in form.nodes if node.out in one.inputs}
    value, gain = form.values[node.inputs[0]], gain_of(node)
    if not readers <= {*FORMULAS}:
        return None
    for place in range(1, 24):
        unit = 1 << place
        largest = max(unit - 1, -(value.low // unit), value.high // unit)
        if largest * gain < FLOAT32_WHOLE:
            return unit
    return None


def gain_of(node: Node) -> float:
    """The largest sum of |weights| of one output."""
    return float(node.arrays["weight"].double().abs().flatten(1).sum(1).max())
