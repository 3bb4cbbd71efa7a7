"""Errors by cause and energy of the settings of a table: one file for each group of settings.

A group is what differs in n alone: one method, presentation, calibration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..data import batches
from ..errors import CheckpointError
from ..neurons.ladder import Learned
from ..system.devices import device_of
from ..system.plain_data import as_type
from ..system.storage import digest, read_json, write_json
from .energy.measure import energy
from .energy.report import EnergyReport
from .errors.layer_errors import layer_errors
from .errors.table import ErrorTable
from .evaluate import convert_for
from .row_cache import AnySetting
from .settings import Setting
from .subject import Subject

ANALYSIS_SCHEMA = "mt_convert.analysis/1"
BATCH = 64


@dataclass(frozen=True)
class _Page:
    page: str


@dataclass(frozen=True)
class _Subject:
    model: str
    dataset: str


_PLAIN = {
    **dict.fromkeys(("method", "presentation", "calibration"), str),
    **{"signed": bool, "calibrated_T": int | None},
}


@dataclass(frozen=True)
class Analysis:
    """What one group of settings shows on ``errors.images`` images: errors by cause, and for each n
    the totals of `energy`, as plain data."""

    subject: dict[str, Any]
    method: str
    presentation: str
    signed: bool
    calibration: str
    calibrated_T: int | None
    errors: ErrorTable
    energy: dict[int, dict[str, Any]]

    @property
    def title(self) -> str:
        """What was analysed, in a line."""
        parts = [
            *(self.subject["model"], self.subject["dataset"], self.method),
            self.presentation.replace("_", " "),
            "signed" if self.signed else "unsigned",
        ]
        if self.calibration != "none":
            parts.append(f"calibrated by {self.calibration} for T = {self.calibrated_T}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data under a schema."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {"schema": ANALYSIS_SCHEMA, **plain, "errors": self.errors.to_json()}

    @classmethod
    def from_json(cls, stored: Any) -> Analysis:
        """What `to_json` wrote.

        Raises:
            CheckpointError: another schema, or a part is missing.
        """
        if not isinstance(stored, dict) or stored.get("schema") != ANALYSIS_SCHEMA:
            raise CheckpointError(
                f"no analysis of this version: its schema must be {ANALYSIS_SCHEMA}"
            )
        try:
            plain = {item.name: stored[item.name] for item in dataclasses.fields(cls)}
        except KeyError as error:
            raise CheckpointError(f"the analysis lacks {error}: make it again") from error
        plain["errors"] = ErrorTable.from_json(plain["errors"])
        pages = as_type(dict[str, _Page], plain["energy"])
        plain["energy"] = {int(n): plain["energy"][n] for n in pages}
        as_type(_Subject, plain["subject"])
        for name, kind in _PLAIN.items():
            as_type(kind, plain[name])
        return cls(**plain)

    def markdown(self) -> str:
        """A page: errors by cause, then energy."""
        lines = [f"## {self.title}", "", self.errors.markdown()]
        for n, report in self.energy.items():
            lines += [f"### Energy, n = {n}", "", report["page"]]
        return "\n".join(lines)


def analyses(
    subject: Subject, settings: Sequence[AnySetting], count: int, folder: Path
) -> list[Analysis]:
    """One analysis for each group of settings, on the first ``count`` test images or all there are.

    Those that are done are read. Networks of other packages are left out: their potentials cannot
    be read.

    Raises:
        OutputError: a file cannot be written; those before it stay.
    """
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        if isinstance(setting, Setting):
            alike = setting
            if not isinstance(setting.ladder, Learned):  # it has no number of thresholds alone
                alike = dataclasses.replace(setting, ladder=type(setting.ladder)(1))  # type: ignore[call-arg]
            groups.setdefault(alike, []).append(setting)
    results = []
    for group in groups.values():
        name = digest(
            [ANALYSIS_SCHEMA, subject.identity, count, *(item.to_json() for item in group)]
        )[:24]
        path = folder / "analyses" / f"{name}.json"
        if not path.is_file():
            write_json(path, _analysis(subject, group, count).to_json())
        results.append(read_json(path, Analysis.from_json))
    return results


def _analysis(subject: Subject, group: Sequence[Setting], count: int) -> Analysis:
    """Measure one group."""
    first = group[0]
    plain = dataclasses.replace(first, calibration=(), calibrated_T=None)
    reference, _ = convert_for(subject.qann, plain, None)
    networks = {
        item.ladder.n: convert_for(subject.qann, item, subject.calibration)[0] for item in group
    }
    device = device_of(subject.qann)
    read = batches(subject.test, BATCH)
    shown = [(x.to(device), y.to(device)) for x, y in islice(read, -(-count // BATCH))]
    pictures = torch.cat([x for x, _ in shown])[:count]
    labels = torch.cat([y for _, y in shown])[:count]
    table = layer_errors(
        networks,
        zip(pictures.split(BATCH), labels.split(BATCH), strict=True),
        time_steps=first.time_steps,
        reference=reference,
        ann=subject.ann,
    )
    steps = first.time_steps
    reports = {n: energy(snn, pictures, time_steps=steps) for n, snn in networks.items()}
    return Analysis(
        subject=subject.describe | {"weight_bits": subject.qann.spec.weight_bits},
        method=first.method,
        presentation=str(first.presentation),
        signed=first.signed,
        calibration=first.calibration_name,
        calibrated_T=first.calibrated_T,
        errors=table,
        energy={n: _energy_json(report) for n, report in reports.items()},
    )


def _energy_json(report: EnergyReport) -> dict[str, Any]:
    """An energy report as plain data, with its page."""
    return {**report.to_json(), "page": report.markdown()}
