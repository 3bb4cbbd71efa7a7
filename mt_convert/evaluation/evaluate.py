"""Accuracy and exactness over thresholds and time steps: many settings in one pass over images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.calibrate import calibrate
from ..calibration.report import CalibrationReport
from ..errors import Fault, SpecError
from ..graph.float32 import in_float32
from ..quantization.quantize import QuantizedModel, levels_of
from ..report.rows import Row
from ..spiking.convert import convert
from ..spiking.model import SpikingModel
from .counter import Counter, percent
from .settings import Setting


@torch.no_grad()
@in_float32()
def evaluate(
    ann: nn.Module,
    qann: QuantizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    settings: Sequence[Setting],
    describe: dict[str, Any],
    *,
    calibration: Tensor | None = None,
) -> list[Row]:
    """A row for each setting and number of steps, all networks on the same images.

    ``describe`` gives the columns that are not measured: model, dataset, seed.

    Shapes:
        batches of images [batch, channels, height, width] and labels [batch]; ``calibration``
        images, for settings that calibrate.
    Raises:
        DataError: images of another shape or with NaN.
        SpecError: no images; a setting that calibrates without ``calibration``.
    """
    ann.eval()
    qann.eval()
    counters = [Counter(qann, convert_for(qann, item, calibration)[0], item) for item in settings]
    total, ann_correct, qann_correct = 0, 0, 0
    device = next(ann.parameters()).device
    for batch in batches:
        images, labels = (tensor.to(device) for tensor in batch)
        total += len(labels)
        ann_correct += int((ann(images).argmax(1) == labels).sum())
        with levels_of(qann) as expected:
            predicted = qann(images).argmax(1)
        qann_correct += int((predicted == labels).sum())
        for counter in counters:
            counter.add(images, labels, predicted, expected)
    if total == 0:
        raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
    columns = describe | reference_columns(qann, total, qann_correct, ann_correct)
    return [row for counter in counters for row in counter.rows(columns)]


def reference_columns(
    qann: QuantizedModel, images: int, qann_correct: int, ann_correct: int | None
) -> dict[str, Any]:
    """The columns that all settings of one network on one set of images share."""
    return {
        "ann_accuracy": None if ann_correct is None else percent(ann_correct, images),
        "qann_accuracy": percent(qann_correct, images),
        "images": images,
        "levels": qann.spec.levels,
        "weight_bits": qann.spec.weight_bits,
        "qat_noise": str(qann.spec.act_noise),
    }


def convert_for(
    qann: QuantizedModel, setting: Setting, calibration: Tensor | None
) -> tuple[SpikingModel, CalibrationReport | None]:
    """The network of a setting, converted and calibrated, with the report of its calibration.

    Raises:
        SpecError: the setting calibrates and there are no images for it.
    """
    snn = convert(
        qann,
        ladder=setting.ladder,
        firing=setting.firing,
        signed=setting.signed,
        presentation=setting.presentation,
        whole_window=setting.whole_window,
    )
    if not setting.calibration:
        return snn, None
    if calibration is None or setting.calibrated_T is None:
        hint = "pass calibration=images of the training set"
        fault = Fault("calibration", setting.calibration_name, hint)
        raise SpecError("no images to calibrate on", [fault])
    device = next(iter(qann.state_dict().values())).device
    done = calibrate(
        snn,
        calibration.to(device),
        setting.calibration,
        time_steps=setting.calibrated_T,
        keep_better=setting.keep_better,
    )
    return done.snn, done.report
