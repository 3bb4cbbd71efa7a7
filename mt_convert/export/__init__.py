"""The converted network in other formats: exact, or refused by name."""

from __future__ import annotations

from .verbs import c, onnx, qonnx, tables, torch
from .verdict import Verdict

__all__ = [
    "Verdict",
    "c",
    "onnx",
    "qonnx",
    "tables",
    "torch",
]
