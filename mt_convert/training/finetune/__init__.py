"""A converted network learns through time, from exactly its conversion."""

from __future__ import annotations

from .finetune import Finetuned, FinetuneSpec
from .learner import TrainableSpikingModel
from .neuron import TrainableParts

__all__ = [
    "FinetuneSpec",
    "Finetuned",
    "TrainableParts",
    "TrainableSpikingModel",
]
