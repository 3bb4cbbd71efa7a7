"""`calibrate`: one calibration after the other, on images without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import Fault, SpecError
from ..graph.float32 import in_float32
from ..spiking.model import SpikingModel, check_converted
from . import layer_wise, membrane, threshold_budget
from .layer_ranges import THRESHOLD_TRANSFORMS
from .report import CalibrationReport, CalibrationRow
from .samples import Samples
from .spec import NAMES, Calibration, LayerWise, MembraneMean, ThresholdBudget

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
    images: Tensor,
    steps: Sequence[Calibration],
    *,
    time_steps: int,
    keep_better: bool = True,
) -> Calibrated:
    """A copy of a converted network, calibrated for T steps; ``snn`` is unchanged.

    The last quarter of the images is held out. With ``keep_better`` a calibration keeps what it
    found only where that lowers its own loss on them; without, it is applied as its source says,
    whatever it does. Layers with learned thresholds are left alone, which the report says.

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
    faults = [
        Fault(repr(step), type(step).__name__, "allowed: " + ", ".join(NAMES))
        for step in steps
        if type(step) not in TRANSFORMS
    ]
    if faults:
        raise SpecError(f"{len(faults)} steps are no calibration", faults)
    check_converted(snn, "calibrate")
    samples, rows = Samples.split(snn, images, time_steps), list[CalibrationRow]()
    snn = snn.with_neurons({})
    for step in steps:
        snn, step_rows = TRANSFORMS[type(step)](step, snn, samples, keep_better)
        rows += step_rows
    warning = (
        f"calibrated for T = {time_steps}: with another number of steps it may be worse than "
        "without calibration; calibrate for that T, or compare both"
    )
    snn.report = replace(snn.report, warnings=(*snn.report.warnings, warning))
    report = CalibrationReport(tuple(rows), len(samples.fit), len(samples.held_out), time_steps)
    return Calibrated(snn, report)
