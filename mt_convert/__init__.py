"""Quantization-aware conversion of trained networks to multi-threshold spiking networks.

    import mt_convert as mt

    qann = mt.quantize(ann, mt.QuantSpec(weight_bits=4, act_bits=4), calibration=images)
    snn = mt.convert(qann)                             # n = L thresholds, T = 1: exact
    run = mt.simulate(snn, images, time_steps=1)       # run.logits [T, batch, classes]
    few = mt.convert(qann, ladder=mt.Uniform(3))       # 3 thresholds, several steps
    bits = mt.convert(qann, ladder=mt.Radix(1), whole_window=True)  # a bit a step: 4 bits, T = 4
    done = mt.calibrate(few, images, [mt.calibration.MembraneMean()], time_steps=4)
    table = mt.layer_errors({3: done.snn}, [images], time_steps=(1, 2, 4))
    fast = mt.integer(snn)                             # whole numbers: fast(images), exact
    mt.save(snn, folder); snn = mt.load(folder)

What is rarer lies in the rooms: ``mt.neurons.PLIF``, ``mt.calibration.MeanSquaredError``. Names are
imported on first use, so that ``mt-convert --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .errors import MTConvertError
    from .evaluation.energy.measure import energy
    from .evaluation.errors.layer_errors import layer_errors
    from .evaluation.evaluate import evaluate
    from .evaluation.settings import Setting
    from .graph.rules import DEFAULT_RULES
    from .integer_engine.model import integer
    from .neurons.ladder import Binary, Learned, PowerOfTwo, Radix, Uniform
    from .quantization.quantize import quantize
    from .quantization.spec import QuantSpec
    from .spiking.convert import convert
    from .spiking.simulate import simulate
    from .training.archive import load, save
    from .training.finetune.finetune import FinetuneSpec, finetune

_HOMES = {
    "calibration.calibrate": ("calibrate",),
    "errors": ("MTConvertError",),
    "evaluation.energy.measure": ("energy",),
    "evaluation.errors.layer_errors": ("layer_errors",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.settings": ("Setting",),
    "graph.rules": ("DEFAULT_RULES",),
    "integer_engine.model": ("integer",),
    "neurons.ladder": (
        "Binary",
        "Learned",
        "PowerOfTwo",
        "Radix",
        "Uniform",
    ),
    "quantization.quantize": ("quantize",),
    "quantization.spec": ("QuantSpec",),
    "spiking.convert": ("convert",),
    "spiking.simulate": ("simulate",),
    "training.archive": (
        "load",
        "save",
    ),
    "training.finetune.finetune": (
        "FinetuneSpec",
        "finetune",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    *("neurons", "graph", "quantization", "data", "report", "spiking", "calibration", "training"),
    *("integer_engine", "export", "evaluation"),
)

__version__ = "0.1.0"
__all__ = [
    "DEFAULT_RULES",
    "Binary",
    "FinetuneSpec",
    "Learned",
    "MTConvertError",
    "PowerOfTwo",
    "QuantSpec",
    "Radix",
    "Setting",
    "Uniform",
    "calibrate",
    "convert",
    "energy",
    "evaluate",
    "finetune",
    "integer",
    "layer_errors",
    "load",
    "quantize",
    "save",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
