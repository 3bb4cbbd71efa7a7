"""`calibrate`: one calibration after the other, on images without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Fault, SpecError, many
from ..graph.float32 import in_float32
from ..graph.image_batches import collect
from ..spiking.model import SpikingModel, spiking_network
from . import layer_wise, membrane, threshold_budget
from .layer_ranges import THRESHOLD_TRANSFORMS
from .report import CalibrationReport, CalibrationRow
from .samples import Samples
from .spec import NAMES, Calibration, LayerWise, MembraneMean, ThresholdBudget
from .text import parse

Calibrations = Sequence[Calibration | str] | Calibration | str
Changed = tuple[SpikingModel, list[CalibrationRow]]
Transform = Callable[[Any, SpikingModel, Samples, bool], Changed]

TRANSFORMS: dict[type, Transform] = {
    **THRESHOLD_TRANSFORMS,
    MembraneMean: membrane.transform,
    LayerWise: layer_wise.transform,
    ThresholdBudget: threshold_budget.transform,
}
"""From the type of a calibration to what it does: (step, network, samples, keep_better)."""


@dataclass(frozen=True)
class Calibrated:
    """The calibrated network and what was done to it."""

    snn: SpikingModel
    report: CalibrationReport


@in_float32()
def calibrate(
    snn: SpikingModel,
    images: Any,
    steps: Calibrations,
    *,
    time_steps: int,
    keep_better: bool = True,
) -> Calibrated:
    """A copy of a converted network, calibrated for T steps; ``snn`` is unchanged.

    ``steps`` are calibrations, their names (`text.parse`) or one of either. ``images`` may be in
    any form that `quantize` takes. The last quarter of them is held out. With ``keep_better`` a
    calibration keeps what it found only where that lowers its own loss on them; without, it is
    applied as its source says, whatever it does. Layers with learned thresholds are left alone,
    which the report says.

    Shapes:
        images [2 to 1,024, channels, height, width], normalised as in training, in random order.
    Raises:
        SpecError: too few or too many images; fewer than one time step; no calibration.
        DataError: images of another shape, or with NaN.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..spiking.convert import convert
        >>> from ..neurons.ladder import Uniform
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> from .spec import MeanSquaredError
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> qann = quantize(net, QuantSpec(), calibration=images)
        >>> snn = convert(qann, ladder=Uniform(1), presentation="every_step")
        >>> result = calibrate(snn, images, [MeanSquaredError()], time_steps=2)
        >>> all(row.loss_now <= row.before for row in result.report.rows)
        True
    """
    snn, steps = spiking_network(snn, "calibrate"), _calibrations(steps)
    images = collect(images, image_shape=snn.image_shape)
    samples, rows = Samples.split(snn, images, time_steps), list[CalibrationRow]()
    snn = snn.with_neurons({})
    snn.report = replace(snn.report, calibrated_T=None)
    for step in steps:
        snn, step_rows = TRANSFORMS[type(step)](step, snn, samples, keep_better)
        rows += step_rows
    warning = (
        f"calibrated for T = {time_steps}: with another number of steps it may be worse than "
        "without calibration; calibrate for that T, or compare both"
    )
    said = tuple(item for item in snn.report.warnings if not item.startswith("calibrated for"))
    snn.report = replace(snn.report, warnings=(*said, warning), calibrated_T=time_steps)
    report = CalibrationReport(tuple(rows), len(samples.fit), len(samples.held_out), time_steps)
    return Calibrated(snn, report)


def _calibrations(given: Any) -> list[Calibration]:
    """Calibrations in order, from values, names, types, or one of these."""
    several = isinstance(given, Iterable) and not isinstance(given, (str, type))
    faults: list[Fault] = []
    steps: list[Calibration] = []
    for item in given if several else [given]:
        if isinstance(item, str):
            try:
                steps += parse(item)
            except SpecError as error:
                faults += error.faults
        elif isinstance(item, type) and item in TRANSFORMS:
            steps.append(item())
        elif type(item) in TRANSFORMS:
            steps.append(item)
        else:
            faults.append(Fault(repr(item), type(item).__name__, "allowed: " + ", ".join(NAMES)))
    if faults:
        what = many(faults, "step is no calibration", "steps are no calibrations")
        raise SpecError(what, faults)
    return steps
