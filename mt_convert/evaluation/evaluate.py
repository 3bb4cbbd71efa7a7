"""Accuracy and exactness over thresholds and time steps: many settings in one pass over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.calibrate import calibrate
from ..calibration.report import CalibrationReport
from ..errors import Fault, SpecError
from ..graph.float32 import in_float32
from ..graph.image_batches import collect, labelled_batches
from ..quantization.quantize import QuantizedModel
from ..quantization.spec import LADDER
from ..report.rows import Row
from ..spiking.convert import convert
from ..spiking.model import SpikingModel, quantized_network
from ..system.devices import device_of
from .counter import Counter, percent
from .loop import Answers, Batch, count_batches, join
from .settings import OwnThresholds, Setting
from .stored import StoredNetwork
from .subject import bits_per_weight, network_digest


@torch.no_grad()
@in_float32()
def evaluate(
    ann: nn.Module | None,
    qann: QuantizedModel,
    batches: Any,
    settings: Sequence[Setting] | Setting,
    describe: Mapping[str, Any] | None = None,
    *,
    calibration: Any = None,
) -> list[Row]:
    """A row for each setting and number of steps, all networks on the same images.

    ``describe`` gives the columns that are not measured: model, dataset, seed. Without the float
    network ``ann`` its column is empty.

    Shapes:
        batches of images [batch, channels, height, width] and labels [batch]: a DataLoader, a data
        set, a list or generator of pairs, or one pair; ``calibration`` images, for settings that
        calibrate, in any form that `quantize` takes.
    Raises:
        DataError: images of another shape or with NaN.
        SpecError: no images; a setting that calibrates without ``calibration``.
    """
    qann = quantized_network(qann, "evaluate")
    settings = [settings] if isinstance(settings, Setting) else settings
    if calibration is not None:
        calibration = collect(calibration, name="calibration images", image_shape=qann.image_shape)
    counters = [Counter(convert_for(qann, item, calibration)[0], item) for item in settings]
    pairs = labelled_batches(batches, image_shape=qann.image_shape)
    shown = (Batch(images, labels) for images, labels in pairs if labels is not None)
    answers = count_batches(qann, ann, shown, counters)
    named = {"model": type(ann or qann).__name__, "dataset": "images", "seed": None}
    describe = {**named, **(describe or {})}
    if not sum(len(batch.labels) for batch in answers):
        raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
    columns = describe | reference_columns(qann, join(answers))
    return [row for counter in counters for row in counter.rows(columns)]


def reference_columns(qann: QuantizedModel | StoredNetwork, answers: Answers) -> dict[str, Any]:
    """The columns that all settings of one network on one set of images share."""
    labels, images = answers.labels, len(answers.labels)

    def accuracy(classes: Tensor) -> float:
        return percent(int((classes == labels).sum()), images)

    return {
        "ann_accuracy": None if answers.ann is None else accuracy(answers.ann),
        "qann_accuracy": accuracy(answers.qann),
        "images": images,
        "levels": qann.spec.levels,
        "weight_bits": bits_per_weight(qann.spec),
        "weights": str(qann.spec.weights),
        "act_bits": qann.spec.act_bits,
        "spacing": str(qann.spec.spacing),
        "rounding": str(qann.spec.rounding),
        "functions": _functions_text(qann),
        "qat_noise": str(qann.spec.act_noise),
        "digest": network_digest(qann),
    }


def _functions_text(qann: QuantizedModel | StoredNetwork) -> str:
    """How many functions are neurons, and how many analog."""
    stored = qann.snn.report if isinstance(qann, StoredNetwork) else qann
    words = [row.taken for row in stored.functions]
    counts = {"as thresholds": words.count(LADDER), "analog": len(words) - words.count(LADDER)}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"


def convert_for(
    qann: QuantizedModel | StoredNetwork, setting: Setting, calibration: Tensor | None
) -> tuple[SpikingModel, CalibrationReport | None]:
    """The network of a setting, converted and calibrated, with the report of its calibration; a
    stored spiking network is as it is, and may be calibrated.

    Raises:
        SpecError: the setting calibrates and there are no images for it.
    """
    if isinstance(qann, StoredNetwork):
        snn = qann.snn
    else:
        snn = convert(
            qann,
            ladder=None if isinstance(setting.ladder, OwnThresholds) else setting.ladder,
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
    done = calibrate(
        snn,
        calibration.to(device_of(qann)),
        setting.calibration,
        time_steps=setting.calibrated_T,
        keep_better=setting.keep_better,
    )
    return done.snn, done.report
