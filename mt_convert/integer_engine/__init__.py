"""A converted network as whole numbers: one program, and the same bits from every backend."""

from __future__ import annotations

from .arithmetic import IntegerArithmetic
from .model import IntegerLayer, IntegerModel, IntegerRun

__all__ = [
    "IntegerArithmetic",
    "IntegerLayer",
    "IntegerModel",
    "IntegerRun",
]
