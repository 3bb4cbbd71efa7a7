"""Networks quantized with Brevitas: what to quantize, and the quantized network."""

from __future__ import annotations

from .adoption import adopt
from .quantize import QuantizedModel
from .spec import ActNoise, BatchNorm, Override, QuantSpec, Rounding, Scale, Spacing, WeightCode

__all__ = [
    "ActNoise",
    "BatchNorm",
    "Override",
    "QuantSpec",
    "QuantizedModel",
    "Rounding",
    "Scale",
    "Spacing",
    "WeightCode",
    "adopt",
]
