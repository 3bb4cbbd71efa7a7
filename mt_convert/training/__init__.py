"""One training loop for fp32 fine-tuning, quantization-aware and spiking training.

`fit` trains a model in place by a `TrainSpec`, survives being killed at any moment, and returns
its `History`.
"""

from __future__ import annotations

from .finetune.finetune import FinetuneSpec
from .finetune.neuron import TrainableParts
from .finetune.spiking_module import SpikingModule
from .from_scratch.network import ScratchNetwork, build_from_scratch
from .gradients import BPTT, DSR, OTTT, Tandem
from .loop import fit
from .spec import EpochRow, FreezeOscillating, History, StepGroup, TrainSpec

__all__ = [
    "BPTT",
    "DSR",
    "OTTT",
    "EpochRow",
    "FinetuneSpec",
    "FreezeOscillating",
    "History",
    "ScratchNetwork",
    "SpikingModule",
    "StepGroup",
    "Tandem",
    "TrainSpec",
    "TrainableParts",
    "build_from_scratch",
    "fit",
]
