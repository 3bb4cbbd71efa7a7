"""The results of a pass through the layers, and whether its network is to be used. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .report import WHOLE, CalibrationRow


@dataclass(frozen=True)
class Passed:
    """The result of one layer: its loss before and after, on what the layers before it then
    emit. ``loss`` is empty where the layer's gaps were learned, so that it was left alone."""

    layer: str
    loss: str = ""
    before: float = 0.0
    after: float = 0.0
    changed: bool = False


def mean_loss(passed: Sequence[Passed]) -> float:
    """The mean over the layers that can be calibrated, each as it now is.

    Example:
        >>> mean_loss([Passed("a", "mse", 1.0, 0.5), Passed("b"), Passed("c", "mse", 1.0, 0.25)])
        0.375
    """
    losses = [item.after for item in passed if item.loss]
    return sum(losses) / max(1, len(losses))


def report_rows(
    calibration: str, at_start: Sequence[Passed], passed: Sequence[Passed], keep_better: bool
) -> list[CalibrationRow]:
    """A row for each layer, and last one for all, whose ``kept`` says whether the network is to be
    used: with ``keep_better`` only if the mean loss of its layers did not rise."""
    before, after = mean_loss(at_start), mean_loss(passed)
    whole = any(item.changed for item in passed) and (after <= before or not keep_better)
    rows = [
        CalibrationRow(
            calibration,
            item.layer,
            item.loss or "learned gaps",
            item.before,
            item.after,
            item.changed and whole,
        )
        for item in passed
    ]
    label = next((f"mean of {item.loss}" for item in passed if item.loss), "learned gaps")
    return [*rows, CalibrationRow(calibration, WHOLE, label, before, after, whole)]
