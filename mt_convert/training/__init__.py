"""One training loop for fp32 fine-tuning, quantization-aware and spiking training.

`fit` trains a model in place by a `TrainSpec`, survives being killed at any moment, and returns
its `History`.
"""

from __future__ import annotations

from .accuracy import accuracy
from .loop import fit
from .loss import TrainLoss, distillation_loss
from .spec import EpochRow, History, TrainSpec

__all__ = [
    "EpochRow",
    "History",
    "TrainLoss",
    "TrainSpec",
    "accuracy",
    "distillation_loss",
    "fit",
]
