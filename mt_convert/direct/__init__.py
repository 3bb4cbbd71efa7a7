"""Training of spiking networks through time, from exactly the network that was converted."""

from __future__ import annotations

from .algorithms import BPTT, DSR, OTTT, Algorithm, Tandem
from .encoding import poisson
from .finetune import Finetuned, FinetuneSpec, finetune
from .parts import Derivative, Trained
from .scratch import SpikingNetwork, spiking
from .stored import load, save
from .tandem import tandem
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
    "Tandem",
    "Trained",
    "Unrolled",
    "finetune",
    "load",
    "poisson",
    "save",
    "spiking",
    "tandem",
]
