"""Cached rows: what one network does on one set of images in one setting is one file.

The settings that are missing are computed in few passes over the images, in each of which the
quantized network runs once for all of its settings; a file is written for each of them behind the
pass. A sweep that is stopped keeps every finished result; the same command continues with what is
left. Under ``accelerate launch`` each process takes its share of the batches of every pass; what
is added up are whole numbers, so that the table is the same for any number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..calibration.report import CalibrationReport
from ..data import batches
from ..errors import CheckpointError, Fault, SpecError
from ..report.rows import Row, results_from_json, results_to_json
from ..spiking.model import SpikingModel
from ..system.plain_data import as_type
from ..system.processes import Processes
from ..system.progress import progress
from ..system.storage import digest, read_json, reading, write_json
from .counter import Counter
from .evaluate import convert_for, reference_columns
from .loop import Answers, Batch, Counts, count_batches, join
from .peers.counter import PeerCounter
from .peers.network import peer_network
from .peers.plain_form import plain
from .settings import PeerSetting, Setting
from .stored import StoredNetwork
from .subject import Subject

CELL_SCHEMA = "mt_convert.cell/3"
AnySetting = Setting | PeerSetting


@dataclass(frozen=True)
class RowCache:
    """Where finished results lie, how images are batched, and who takes part.

    ``steps_together`` bounds the time steps that are simulated for an image in one pass, which is
    what an interruption can cost. No setting counts for less than a sixteenth of it, so that no
    more than 16 networks are held at once.
    """

    folder: Path
    batch_size: int = 128
    processes: Processes = field(default_factory=Processes)
    steps_together: int = 256

    def rows(self, subject: Subject, settings: Sequence[AnySetting], label: str) -> list[Row]:
        """The rows of all settings; finished ones are read, the others computed.

        Raises:
            DataError: images of another shape or with NaN.
            SpecError: no images.
            OutputError: a result cannot be written; those before it stay.
        """
        if not len(subject.test):
            raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
        stored = {setting: _read_rows(self.path(subject, setting)) for setting in settings}
        rows = {setting: item for setting, item in stored.items() if item is not None}
        missing = [setting for setting in stored if setting not in rows]
        for together in _passes(missing, self.steps_together):
            rows |= self._compute(subject, together, f"{label} {_label(together)}")
        self.processes.wait()
        return [row for setting in settings for row in rows[setting]]

    def path(self, subject: Subject, setting: AnySetting) -> Path:
        """The file of a setting's rows."""
        name = digest([CELL_SCHEMA, subject.identity, self.batch_size, setting.to_json()])[:24]
        return self.folder / "cells" / f"{name}.json"

    def rows_of(self, subject: Subject, snn: SpikingModel, setting: Setting) -> list[Row]:
        """The rows of a network that was trained since ``setting`` converted it; not stored."""
        counter = Counter(snn, setting, comparable=False)
        return counter.rows(self._count(subject, [counter], f"trained {_label([setting])}"))

    def _compute(
        self, subject: Subject, settings: Sequence[AnySetting], label: str
    ) -> dict[AnySetting, list[Row]]:
        """Compute the rows of these settings in one pass, and store each setting's."""
        started = time.monotonic()
        counters, reports = zip(*(_counter(subject, item) for item in settings), strict=True)
        columns = self._count(subject, counters, label)
        seconds = round(time.monotonic() - started, 1)
        rows = {}
        for setting, counter, report in zip(settings, counters, reports, strict=True):
            rows[setting] = counter.rows(columns)
            if self.processes.first:
                cell = _cell(rows[setting], setting, report, seconds)
                write_json(self.path(subject, setting), cell)
        return rows

    def _count(self, subject: Subject, counters: Sequence[Counts], label: str) -> dict[str, Any]:
        """Show all images to what counts, each to one of the processes; the columns that are not
        counted."""
        known = self._read_answers(subject)
        shown = self._batches(subject, known, label)
        answers = count_batches(subject.qann, subject.ann, shown, counters)
        for counter in counters:
            counter.counts = self.processes.sum(counter.counts)
            counter.neuron_count = max(self.processes.all_of(counter.neuron_count))
        whole = self._store_answers(subject, answers) if known is None else known
        return subject.describe | reference_columns(subject.qann, whole)

    def _answers_path(self, subject: Subject) -> Path:
        """The file of what the float and the quantized network answer, image by image."""
        name = digest([CELL_SCHEMA, subject.identity, self.batch_size])[:24]
        return self.folder / "references" / f"{name}.json"

    def _read_answers(self, subject: Subject) -> Answers | None:
        """The answers to all images, if an earlier pass has stored them."""
        path = self._answers_path(subject)
        if not path.is_file():
            return None
        stored = read_json(path, lambda content: as_type(dict[str, list[int]], content))
        with reading(path):
            labels, ann, qann = (torch.tensor(stored[name]) for name in Answers._fields)
            if {len(subject.test)} != {len(labels), len(qann), len(ann) or len(labels)}:
                raise CheckpointError(f"answers to {len(labels)} images, not {len(subject.test)}")
        return Answers(labels, ann if len(ann) else None, qann)

    def _store_answers(self, subject: Subject, own: Sequence[Answers]) -> Answers:
        """The answers of all processes, stored in the order of the images."""
        parts = self.processes.all_of(list(zip(self._starts(subject), own, strict=True)))
        ordered = sorted((item for part in parts for item in part), key=lambda item: item[0])
        whole = join([answers for _, answers in ordered])
        if self.processes.first:
            lists = {
                name: [] if classes is None else classes.tolist()
                for name, classes in whole._asdict().items()
            }
            write_json(self._answers_path(subject), lists)
        self.processes.wait()
        return whole

    def _starts(self, subject: Subject) -> range:
        """The first image of each of this process's batches."""
        index, count = self.processes.share
        return range(0, len(subject.test), self.batch_size)[index::count]

    def _batches(self, subject: Subject, known: Answers | None, label: str) -> Iterator[Batch]:
        """This process's batches, with the answers where they are known."""
        starts = self._starts(subject)
        read = batches(subject.test, self.batch_size, share=self.processes.share)
        shown = progress(read, label, total=len(starts)) if self.processes.first else read
        for start, (images, labels) in zip(starts, shown, strict=True):
            answers = None if known is None else known.part(start, start + len(labels))
            yield Batch(images, labels, answers)


def _passes(settings: Sequence[AnySetting], steps_together: int) -> list[list[AnySetting]]:
    """The settings of each pass over the images.

    Those that compare levels share the quantized network's, so many of them as the steps allow.
    Those that do not (a calibration can take long) are finished one by one, and need no answers but
    the stored ones.
    """
    passes: list[list[AnySetting]] = []
    left = 0
    for setting in settings:
        if isinstance(setting, Setting) and setting.comparable:
            steps = max(sum(setting.runs), steps_together // 16)
            if steps > left or not passes:
                passes.append([])
                left = steps_together
            passes[-1].append(setting)
            left -= steps
    return passes + [[setting] for setting in settings if not setting.comparable]


def _counter(subject: Subject, setting: AnySetting) -> tuple[Counts, CalibrationReport | None]:
    """What counts in a setting, and the report of its calibration."""
    if isinstance(setting, Setting):
        snn, report = convert_for(subject.qann, setting, subject.calibration)
        as_is = not isinstance(subject.qann, StoredNetwork) or subject.qann.is_as_converted
        return Counter(snn, setting, comparable=as_is), report
    if subject.ann is None:
        hint = "name a run or a recipe"
        fault = Fault(setting.method, "converts float networks, and there is none here", hint)
        raise SpecError("a peer needs the float network", [fault])
    form = plain(subject.ann, subject.calibration[:2])
    return PeerCounter(peer_network(setting.method, form, subject.calibration), setting), None


def _label(settings: Sequence[AnySetting]) -> str:
    """What progress calls these settings."""
    if len(settings) > 1:
        return f"{len(settings)} settings"
    (setting,) = settings
    if isinstance(setting, PeerSetting):
        return setting.method
    return f"{setting.method} n={setting.ladder.n} {setting.calibration_name}"


def _cell(
    rows: list[Row], setting: AnySetting, report: CalibrationReport | None, seconds: float
) -> dict[str, Any]:
    """The content of a result's file; ``seconds`` are those of the pass that it was part of."""
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
    with reading(path):
        return results_from_json(content["results"])
