"""What calibration did, layer by layer, as values, and how people read it. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..report.records import Records

CALIBRATION_SCHEMA = "mt_convert.calibration/1"
WHOLE = "all layers"


@dataclass(frozen=True)
class CalibrationRow:
    """What one calibration did to one layer, or to ``all layers`` at once.

    ``loss`` names what the calibration makes small, or why it left the layer alone; ``before`` and
    ``after`` are its values on held-out images, ``after`` with what the calibration found, whether
    or not that was ``kept``.

    Example:
        >>> CalibrationRow("mse", "act1", "mean square", 0.5, 0.25, True).loss_now
        0.25
    """

    calibration: str
    layer: str
    loss: str
    before: float
    after: float
    kept: bool

    @property
    def loss_now(self) -> float:
        """The loss of the layer as it is in the calibrated network."""
        return self.after if self.kept else self.before


@dataclass(frozen=True, repr=False)
class CalibrationReport(Records):
    """All rows, the images fitted to and held out, and the steps T that were calibrated for."""

    rows: tuple[CalibrationRow, ...]
    images: int
    held_out: int
    time_steps: int

    def records(self) -> list[dict[str, Any]]:
        """Its rows as plain numbers."""
        return [dataclasses.asdict(row) for row in self.rows]

    def __repr__(self) -> str:
        return (
            f"CalibrationReport({len(self.rows)} rows, T={self.time_steps}, images={self.images}, "
            f"held_out={self.held_out})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data under a schema."""
        return {"schema": CALIBRATION_SCHEMA, **dataclasses.asdict(self)}

    def markdown(self) -> str:
        """A page: what was done in a sentence per calibration, and the table."""
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        lines += [f"| {' | '.join(_cells(row))} |" for row in self.rows]
        return "\n".join([f"{self}", "", *lines, ""])

    def __str__(self) -> str:
        head = (
            f"calibrated for T = {self.time_steps} on {self.images} images, losses on "
            f"{self.held_out} held out"
        )
        return "\n".join([head, *self._sentences()])

    def _sentences(self) -> Iterator[str]:
        """One line for each calibration: rows kept, and its loss on the whole network, where there
        is one, or the mean over layers."""
        for name, group in groupby(self.rows, lambda row: row.calibration):
            rows = list(group)
            kept = sum(row.kept for row in rows)
            judged = [row for row in rows if row.layer == WHOLE] or rows
            before = sum(row.before for row in judged) / len(judged)
            now = sum(row.loss_now for row in judged) / len(judged)
            yield f"  {name}  {kept} of {len(rows)} kept  loss {before:.4g} -> {now:.4g}"


COLUMNS = ("calibration", "layer", "loss", "before", "after", "kept")
"""The columns people read."""


def _cells(row: CalibrationRow) -> list[str]:
    """A row as text, one entry for each of `COLUMNS`."""
    losses = (f"{row.before:.4g}", f"{row.after:.4g}")
    return [row.calibration, row.layer, row.loss, *losses, "yes" if row.kept else "no"]
