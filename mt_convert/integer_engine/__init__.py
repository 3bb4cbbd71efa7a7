"""A converted network as whole numbers: one program, and the same bits from every backend."""

from .model import IntegerLayer, IntegerModel, IntegerRun, integer

__all__ = ["IntegerLayer", "IntegerModel", "IntegerRun", "integer"]
