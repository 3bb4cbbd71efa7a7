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
    return _gain(node) * max(-value.low, value.high)


def _gain(node: Node) -> float:
    """The largest sum of |weights| of one output."""
    return float(node.arrays["weight"].double().abs().flatten(1).sum(1).max())
