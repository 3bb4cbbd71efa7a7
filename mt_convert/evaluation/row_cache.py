"""Cached rows: what one network does on one set of images in one setting is one file.

A sweep that is stopped keeps every finished result; the same command continues with what is
left. Under ``accelerate launch`` each process takes its share of the batches of every setting; what
is added up are whole numbers, so that the table is the same for any number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibration.report import CalibrationReport
from ..data import batches
from ..errors import CheckpointError, Fault, SpecError
from ..quantization.quantize import QuantizedModel, levels_of
from ..report.rows import Row, results_from_json, results_to_json
from ..spiking.model import SpikingModel
from ..system.processes import Processes
from ..system.progress import progress
from ..system.storage import digest, read_json, write_json
from .counter import Counter
from .evaluate import convert_for, reference_columns
from .peers.counter import PeerCounter
from .peers.network import peer_network
from .peers.plain_form import plain
from .settings import PeerSetting, Setting
from .subject import Subject

CELL_SCHEMA = "mt_convert.cell/2"
AnySetting = Setting | PeerSetting


@dataclass(frozen=True)
class RowCache:
    """Where finished results lie, how images are batched, and who takes part."""

    folder: Path
    batch_size: int = 128
    processes: Processes = field(default_factory=Processes)

    def rows(self, subject: Subject, settings: Sequence[AnySetting], label: str) -> list[Row]:
        """The rows of all settings; finished ones are read, the others computed.

        Raises:
            DataError: images of another shape or with NaN.
            SpecError: no images.
            OutputError: a result cannot be written; those before it stay.
        """
        if not len(subject.test):
            raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
        found: list[Row] = []
        for index, setting in enumerate(settings, 1):
            path = self.path(subject, setting)
            rows = _read_rows(path)
            if rows is None:
                rows = self._compute(subject, setting, path, f"{label} {index}/{len(settings)}")
            found += rows
        self.processes.wait()
        return found

    def path(self, subject: Subject, setting: AnySetting) -> Path:
        """The file of a setting's rows."""
        name = digest([CELL_SCHEMA, subject.identity, self.batch_size, setting.to_json()])[:24]
        return self.folder / "cells" / f"{name}.json"

    def _compute(self, subject: Subject, setting: AnySetting, path: Path, label: str) -> list[Row]:
        """Compute the rows of a setting and store them."""
        started = time.monotonic()
        counter, report = _counter(subject, setting)
        rows = self._count(subject, counter, f"{label} {_label(setting)}")
        if self.processes.first:
            seconds = round(time.monotonic() - started, 1)
            write_json(path, _cell(rows, setting, report, seconds))
        return rows

    def rows_of(self, subject: Subject, snn: SpikingModel, setting: Setting) -> list[Row]:
        """The rows of a network that was trained since ``setting`` converted it; not stored."""
        counter = Counter(subject.qann, snn, setting, comparable=False)
        return self._count(subject, counter, f"trained {_label(setting)}")

    def _count(self, subject: Subject, counter: Counter | PeerCounter, label: str) -> list[Row]:
        """The rows of what counts, all images seen by one of the processes."""
        classes = self._reference(subject)
        for start, images, labels in self._batches(subject, label):
            expected = _levels(subject.qann, images) if counter.comparable else {}
            predicted = torch.tensor(
                classes["qann"][start : start + len(labels)], device=images.device
            )
            counter.add(images, labels, predicted, expected)
        counter.counts = self.processes.sum(counter.counts)
        counter.neuron_count = max(self.processes.all_of(counter.neuron_count))
        return counter.rows(subject.describe | self._columns(subject, classes))

    def _columns(self, subject: Subject, classes: dict[str, list[int]]) -> dict[str, Any]:
        """The columns that all rows of a subject share."""
        correct = {
            name: sum(map(int.__eq__, classes[name], classes["labels"]))
            for name in ("ann", "qann")
            if classes[name]
        }
        images = len(classes["labels"])
        return reference_columns(subject.qann, images, correct["qann"], correct.get("ann"))

    def _reference(self, subject: Subject) -> dict[str, list[int]]:
        """The classes that the float and the quantized network predict, image by image."""
        name = digest([CELL_SCHEMA, subject.identity, self.batch_size])[:24]
        path = self.folder / "references" / f"{name}.json"
        if path.is_file():
            stored: dict[str, list[int]] = read_json(path)
            return stored
        subject.qann.eval()
        parts: list[tuple[int, dict[str, list[int]]]] = []
        for start, images, labels in self._batches(subject, "reference"):
            with torch.no_grad():
                ann = [] if subject.ann is None else subject.ann.eval()(images).argmax(1).tolist()
                qann = subject.qann(images).argmax(1).tolist()
            parts.append((start, {"labels": labels.tolist(), "ann": ann, "qann": qann}))
        everything = sorted(
            (item for part in self.processes.all_of(parts) for item in part), key=lambda it: it[0]
        )
        classes = {
            name: [value for _, part in everything for value in part[name]]
            for name in ("labels", "ann", "qann")
        }
        if self.processes.first:
            write_json(path, classes)
        self.processes.wait()
        return classes

    def _batches(self, subject: Subject, label: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        """This process's batches, each with the number of its first image."""
        index, count = self.processes.share
        device = next(iter(subject.qann.state_dict().values())).device
        starts = range(0, len(subject.test), self.batch_size)[index::count]
        read = batches(subject.test, self.batch_size, share=(index, count))
        shown = progress(read, label, total=len(starts)) if self.processes.first else read
        for start, (images, labels) in zip(starts, shown, strict=True):
            yield start, images.to(device), labels.to(device)


def _counter(
    subject: Subject, setting: AnySetting
) -> tuple[Counter | PeerCounter, CalibrationReport | None]:
    """What counts in a setting, and the report of its calibration."""
    if isinstance(setting, Setting):
        snn, report = convert_for(subject.qann, setting, subject.calibration)
        return Counter(subject.qann, snn, setting), report
    if subject.ann is None:
        hint = "name a run or a recipe"
        fault = Fault(setting.method, "converts float networks, and there is none here", hint)
        raise SpecError("a peer needs the float network", [fault])
    form = plain(subject.ann, subject.calibration[:2])
    return PeerCounter(peer_network(setting.method, form, subject.calibration), setting), None


def _label(setting: AnySetting) -> str:
    """What progress calls a setting."""
    if isinstance(setting, PeerSetting):
        return setting.method
    return f"{setting.method} n={setting.ladder.n} {setting.calibration_name}"


def _levels(qann: QuantizedModel, images: Tensor) -> dict[str, Tensor]:
    """The quantized network's levels on these images."""
    with torch.no_grad(), levels_of(qann) as expected:
        qann(images)
    return expected


def _cell(
    rows: list[Row], setting: AnySetting, report: CalibrationReport | None, seconds: float
) -> dict[str, Any]:
    """The content of a result's file."""
    return {
        "schema": CELL_SCHEMA,
        "setting": setting.to_json(),
        "seconds": seconds,
        "calibration": None if report is None else report.to_json(),
        "results": results_to_json(rows),
    }


def _read_rows(path: Path) -> list[Row] | None:
    """The rows of a finished result; None where there is none, or one of another version."""
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != CELL_SCHEMA:
        raise CheckpointError(f"{path} is no result of this version: remove it to compute it again")
    return results_from_json(content["results"])
