"""What a converted network does on images: accuracy, errors by cause, energy, other packages."""

from __future__ import annotations

from .energy.report import EnergyReport
from .errors.table import ErrorTable
from .settings import METHODS, Setting

__all__ = [
    "METHODS",
    "EnergyReport",
    "ErrorTable",
    "Setting",
]
