"""A converted network as whole numbers: exact, and faster than the network it came from."""

from .model import IntegerLayer, IntegerModel, IntegerRun, integer

__all__ = ["IntegerLayer", "IntegerModel", "IntegerRun", "integer"]
