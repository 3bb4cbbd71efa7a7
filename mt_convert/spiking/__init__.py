"""The converted network: convert, verify, simulate, save and load it."""

from __future__ import annotations

from .compiled import CompiledSimulation
from .conversion_report import ConversionReport
from .model import SpikingModel
from .presentation import Presentation
from .simulate import Run

__all__ = [
    "CompiledSimulation",
    "ConversionReport",
    "Presentation",
    "Run",
    "SpikingModel",
]
