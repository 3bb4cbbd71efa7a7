"""Networks quantized with Brevitas: what to quantize, and the quantized network."""

from __future__ import annotations

from .adoption import adopt
from .quantize import QuantizedModel
from .spec import ActNoise, BatchNorm, Override, QuantSpec, Scale, Spacing, WeightCode

__all__ = [
    "ActNoise",
    "BatchNorm",
    "Override",
    "QuantSpec",
    "QuantizedModel",
    "Scale",
    "Spacing",
    "WeightCode",
    "adopt",
]
