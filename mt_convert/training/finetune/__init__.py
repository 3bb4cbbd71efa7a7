"""Training of spiking networks through time, from exactly the network that was converted."""

from __future__ import annotations

from ..algorithm import Derivative
from ..from_scratch.archive import load, save
from ..from_scratch.network import SpikingNetwork, spiking
from ..from_scratch.poisson import poisson
from ..gradients import BPTT, DSR, OTTT, Algorithm, Tandem
from .finetune import Finetuned, FinetuneSpec, finetune
from .learner import Unrolled
from .neuron import Trained
from .progressive_tandem import tandem

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
