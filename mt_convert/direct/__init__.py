"""Training of spiking networks through time, from exactly the network that was converted."""

from __future__ import annotations

from .algorithms import BPTT, DSR, OTTT, Algorithm
from .finetune import Finetuned, FinetuneSpec, finetune
from .parts import Derivative, Trained
from .scratch import SpikingNetwork, spiking
from .unrolled import Unrolled

__all__ = [
    "BPTT",
    "DSR",
    "OTTT",
    "Algorithm",
    "Derivative",
    "FinetuneSpec",
    "Finetuned",
    "SpikingNetwork",
    "Trained",
    "Unrolled",
    "finetune",
    "spiking",
]
