"""The converted network in other formats: exact, or refused by name."""

from __future__ import annotations

from .approximation import Difference
from .hub import from_pretrained, push_to_hub, save_pretrained
from .verbs import c, nir, onnx, qdq, qonnx, spikingjelly, tables, torch
from .verdict import Verdict

__all__ = [
    "Difference",
    "Verdict",
    "c",
    "from_pretrained",
    "nir",
    "onnx",
    "push_to_hub",
    "qdq",
    "qonnx",
    "save_pretrained",
    "spikingjelly",
    "tables",
    "torch",
]
