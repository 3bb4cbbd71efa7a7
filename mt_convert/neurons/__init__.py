"""Multi-threshold neurons: ladders, one step, a layer, totals over steps."""

from __future__ import annotations

from .dynamics import mt_step
from .ladder import Binary, Firing, Learned, PowerOfTwo, Radix, Uniform, UnsignedRadix
from .layer import MTNeuron
from .spec import IF, LIF, PLIF, NeuronSpec, Reset

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Binary",
    "Firing",
    "Learned",
    "MTNeuron",
    "NeuronSpec",
    "PowerOfTwo",
    "Radix",
    "Reset",
    "Uniform",
    "UnsignedRadix",
    "mt_step",
]
