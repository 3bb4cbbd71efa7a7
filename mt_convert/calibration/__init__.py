"""Calibration after conversion: thresholds, initial potentials, weights, from images alone.

`calibrate` takes a converted network and a sequence of small values that say what to do, and
returns a calibrated copy with a report of each loss before and after.
"""

from __future__ import annotations

from .calibrate import Calibrated
from .report import CalibrationReport, CalibrationRow
from .spec import (
    NAMES,
    Calibration,
    Gaussian,
    InitialPotential,
    LayerWise,
    Loss,
    Maximum,
    MeanSquaredError,
    MembraneMean,
    Objective,
    Per,
    Percentile,
    PercentileAlphaBeta,
    ThresholdBudget,
)
from .text import name_of, parse

__all__ = [
    "NAMES",
    "Calibrated",
    "Calibration",
    "CalibrationReport",
    "CalibrationRow",
    "Gaussian",
    "InitialPotential",
    "LayerWise",
    "Loss",
    "Maximum",
    "MeanSquaredError",
    "MembraneMean",
    "Objective",
    "Per",
    "Percentile",
    "PercentileAlphaBeta",
    "ThresholdBudget",
    "name_of",
    "parse",
]
