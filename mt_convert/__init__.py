"""Quantization-aware conversion of trained networks to multi-threshold spiking networks.

    import mt_convert as mt

    qann = mt.quantize(ann, mt.QuantSpec(weight_bits=4, act_bits=4), calibration=images)
    snn = mt.convert(qann)                             # n = L thresholds, T = 1: exact
    run = mt.simulate(snn, images, time_steps=1)       # run.logits [T, batch, classes]
    mt.save(snn, folder); snn = mt.load(folder)

Names are imported on first use, so that ``mt-convert --help`` does not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive import load, save
    from .convert import convert
    from .errors import MTConvertError
    from .integer import IntegerArithmetic
    from .ladder import Binary, Firing, Learned, PowerOfTwo, Uniform
    from .neurons import IF, LIF, PLIF, MTNeuron, NeuronSpec, Reset, mt_step
    from .quant_spec import BatchNorm, Override, QuantSpec, Scale
    from .quantize import QuantizedModel, quantize
    from .rules import DEFAULT_RULES, Kind, Rule
    from .simulate import Run, simulate
    from .spiking import ConversionReport, Presentation, SpikingModel

_HOMES = {
    "archive": ("load", "save"),
    "convert": ("convert",),
    "errors": ("MTConvertError",),
    "integer": ("IntegerArithmetic",),
    "ladder": ("Binary", "Firing", "Learned", "PowerOfTwo", "Uniform"),
    "neurons": ("IF", "LIF", "PLIF", "MTNeuron", "NeuronSpec", "Reset", "mt_step"),
    "quant_spec": ("BatchNorm", "Override", "QuantSpec", "Scale"),
    "quantize": ("QuantizedModel", "quantize"),
    "rules": ("DEFAULT_RULES", "Kind", "Rule"),
    "simulate": ("Run", "simulate"),
    "spiking": ("ConversionReport", "Presentation", "SpikingModel"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "DEFAULT_RULES",
    "IF",
    "LIF",
    "PLIF",
    "BatchNorm",
    "Binary",
    "ConversionReport",
    "Firing",
    "IntegerArithmetic",
    "Kind",
    "Learned",
    "MTConvertError",
    "MTNeuron",
    "NeuronSpec",
    "Override",
    "PowerOfTwo",
    "Presentation",
    "QuantSpec",
    "QuantizedModel",
    "Reset",
    "Rule",
    "Run",
    "Scale",
    "SpikingModel",
    "Uniform",
    "convert",
    "load",
    "mt_step",
    "quantize",
    "save",
    "simulate",
]


class _Face(ModuleType):
    """The package as users see it: three verbs share their names with the files they live in, and
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
