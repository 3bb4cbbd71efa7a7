"""The converted network in other formats: exact, or refused by name."""

from __future__ import annotations

from .targets import c, onnx, qonnx, tables
from .verdict import Verdict

__all__ = [
    "Verdict",
    "c",
    "onnx",
    "qonnx",
    "tables",
]
