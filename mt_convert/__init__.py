"""Quantization-aware conversion of trained networks to multi-threshold spiking networks.

    import mt_convert as mt

    qann = mt.quantize(ann, mt.QuantSpec(weight_bits=4, act_bits=4), calibration=images)
    snn = mt.convert(qann)                             # n = L thresholds, T = 1: exact
    run = mt.simulate(snn, images, time_steps=1)       # run.logits [T, batch, classes]
    done = mt.calibrate(mt.convert(qann, ladder=mt.Uniform(3)), images, [mt.MembraneMean()],
                        time_steps=4)              # done.snn, done.report
    table = mt.layer_errors({3: done.snn}, [images], time_steps=(1, 2, 4))
    fast = mt.integer(snn)                             # whole numbers: fast(images), exact
    mt.save(snn, folder); snn = mt.load(folder)

Names are imported on first use, so that ``mt-convert --help`` does not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .calibration.spec import (
        Gaussian,
        InitialPotential,
        LayerWise,
        Maximum,
        MeanSquaredError,
        MembraneMean,
        Percentile,
        PercentileAlphaBeta,
        Thresholds,
    )
    from .errors import MTConvertError
    from .evaluation.energy.measure import energy
    from .evaluation.errors.layer_errors import layer_errors
    from .evaluation.errors.table import ErrorTable
    from .evaluation.evaluate import evaluate
    from .evaluation.settings import Setting
    from .graph.rules import DEFAULT_RULES, Kind, Rule
    from .integer_engine.arithmetic import IntegerArithmetic
    from .integer_engine.model import IntegerModel, integer
    from .neurons.dynamics import mt_step
    from .neurons.ladder import Binary, Firing, Learned, PowerOfTwo, Uniform
    from .neurons.layer import MTNeuron
    from .neurons.spec import IF, LIF, PLIF, NeuronSpec, Reset
    from .quantization.quantize import QuantizedModel, quantize
    from .quantization.spec import (
        ActNoise,
        BatchNorm,
        Override,
        QuantSpec,
        Scale,
        Spacing,
        WeightCode,
    )
    from .spiking.archive import load, save
    from .spiking.compiled import CompiledSimulation
    from .spiking.conversion_report import ConversionReport
    from .spiking.convert import convert
    from .spiking.model import SpikingModel
    from .spiking.presentation import Presentation
    from .spiking.simulate import Run, simulate
    from .training.finetune import finetune
    from .training.finetune.finetune import FinetuneSpec
    from .training.finetune.neuron import Trained
    from .training.gradients import BPTT, DSR, OTTT

_HOMES = {
    "spiking.archive": ("load", "save"),
    "calibration": (
        "Gaussian",
        "InitialPotential",
        "LayerWise",
        "Maximum",
        "MeanSquaredError",
        "MembraneMean",
        "Percentile",
        "PercentileAlphaBeta",
        "Thresholds",
        "calibrate",
    ),
    "spiking.compiled": ("CompiledSimulation",),
    "evaluation.errors": ("ErrorTable", "layer_errors"),
    "training.finetune": ("BPTT", "DSR", "OTTT", "FinetuneSpec", "Trained", "finetune"),
    "evaluation.energy": ("energy",),
    "spiking.convert": ("convert",),
    "errors": ("MTConvertError",),
    "evaluation.evaluate": ("evaluate",),
    "integer_engine.arithmetic": ("IntegerArithmetic",),
    "integer_engine": ("IntegerModel", "integer"),
    "neurons.ladder": ("Binary", "Firing", "Learned", "PowerOfTwo", "Uniform"),
    "neurons.dynamics": ("IF", "LIF", "PLIF", "MTNeuron", "NeuronSpec", "Reset", "mt_step"),
    "quantization.spec": (
        *("ActNoise", "BatchNorm", "Override", "QuantSpec", "Scale"),
        *("Spacing", "WeightCode"),
    ),
    "quantization.quantize": ("QuantizedModel", "quantize"),
    "graph.rules": ("DEFAULT_RULES", "Kind", "Rule"),
    "evaluation.settings": ("Setting",),
    "spiking.simulate": ("Run", "simulate"),
    "spiking.model": ("ConversionReport", "Presentation", "SpikingModel"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "BPTT",
    "DEFAULT_RULES",
    "DSR",
    "IF",
    "LIF",
    "OTTT",
    "PLIF",
    "ActNoise",
    "BatchNorm",
    "Binary",
    "CompiledSimulation",
    "ConversionReport",
    "ErrorTable",
    "FinetuneSpec",
    "Firing",
    "Gaussian",
    "InitialPotential",
    "IntegerArithmetic",
    "IntegerModel",
    "Kind",
    "LayerWise",
    "Learned",
    "MTConvertError",
    "MTNeuron",
    "Maximum",
    "MeanSquaredError",
    "MembraneMean",
    "NeuronSpec",
    "Override",
    "Percentile",
    "PercentileAlphaBeta",
    "PowerOfTwo",
    "Presentation",
    "QuantSpec",
    "QuantizedModel",
    "Reset",
    "Rule",
    "Run",
    "Scale",
    "Setting",
    "Spacing",
    "SpikingModel",
    "Thresholds",
    "Trained",
    "Uniform",
    "WeightCode",
    "calibrate",
    "convert",
    "energy",
    "evaluate",
    "finetune",
    "integer",
    "layer_errors",
    "load",
    "mt_step",
    "quantize",
    "save",
    "simulate",
]


class _Face(ModuleType):
    """The package as users see it: some verbs share their names with the files they live in, and
    importing such a file must not put the file in the verb's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Face
