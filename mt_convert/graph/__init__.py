"""A network as a graph of operators, and the rule that says what each does over time."""

from __future__ import annotations

from .operations import Operation
from .rules import DEFAULT_RULES, OperatorKind, Rule

__all__ = [
    "DEFAULT_RULES",
    "Operation",
    "OperatorKind",
    "Rule",
]
