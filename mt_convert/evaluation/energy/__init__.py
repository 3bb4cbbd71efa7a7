"""What a converted network costs: additions, multiply-accumulates, comparisons, picojoules."""

from __future__ import annotations

from .report import FP32_45NM, INT32_45NM, EnergyReport, EnergyTable

__all__ = [
    "FP32_45NM",
    "INT32_45NM",
    "EnergyReport",
    "EnergyTable",
]
