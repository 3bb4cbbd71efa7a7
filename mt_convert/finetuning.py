"""Fine-tuning of a run's network, evaluated beside the conversion it started from."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .data import Splits
from .direct.named import ALGORITHMS, SURROGATES
from .errors import Fault, SpecError
from .evaluation.evaluate import prepared
from .evaluation.row_cache import Cells, Subject
from .evaluation.settings import Setting
from .report.rows import Row
from .spiking import archive
from .system.peak_memory import meter_of
from .system.storage import read_json, write_json
from .training.finetune import finetune
from .training.finetune.finetune import FinetuneSpec
from .training.finetune.neuron import Trained
from .training.spec import History, TrainSpec

PARTS = ("weights", "thresholds", "potentials", "leaks")
TEACHERS = ("ann", "qann")


@dataclass(frozen=True)
class FinetuneJob:
    """How a network is converted, and how it then learns; names as recipes write them.

    ``setting`` has one number of steps, for which it learns. ``teacher`` is asked where
    ``train.distillation_weight`` is above 0.

    Raises:
        SpecError: names that are not known, or do not go together; more than one number of steps.

    Example:
        >>> from .neurons.ladder import Uniform
        >>> FinetuneJob(Setting(Uniform(1), (2,)), "dsr", TrainSpec(epochs=1)).how().time_steps
        2
    """

    setting: Setting
    algorithm: str
    train: TrainSpec
    surrogate: str | None = None
    learns: tuple[str, ...] = ("weights", "thresholds")
    teacher: str = "qann"
    detach_reset: bool = True

    def __post_init__(self) -> None:
        allowed = {
            "algorithm": (self.algorithm, tuple(ALGORITHMS)),
            "surrogate": (self.surrogate, (None, *SURROGATES)),
            "teacher": (self.teacher, TEACHERS),
            **{f"learns.{k}": (name, PARTS) for k, name in enumerate(self.learns)},
        }
        faults = [
            Fault(where, repr(value), f"allowed: {', '.join(map(str, known))}")
            for where, (value, known) in allowed.items()
            if value not in known
        ]
        if len(self.setting.time_steps) != 1:
            steps = ", ".join(map(str, self.setting.time_steps))
            faults.append(Fault("time_steps", steps, "allowed: one number of steps to learn for"))
        if faults:
            raise SpecError(f"{len(faults)} values of the fine-tuning are not allowed", faults)
        self.how()

    def how(self) -> FinetuneSpec:
        """The values behind the names."""
        return FinetuneSpec(
            self.setting.time_steps[0],
            ALGORITHMS[self.algorithm],
            Trained(**{name: name in self.learns for name in PARTS}),
            None if self.surrogate is None else SURROGATES[self.surrogate],
            self.detach_reset,
        )


def finetuned(
    job: FinetuneJob,
    subject: Subject,
    splits: Splits,
    folder: Path,
    *,
    classes: int,
    shared: Path | None = None,
) -> tuple[list[Row], History]:
    """Convert, fine-tune and evaluate: the rows of the conversion and of what it became.

    Leaves in ``folder``: ``learn`` (the training, which goes on where it was stopped), ``network``
    (the fine-tuned network), and, unless a ``shared`` folder of several trainings is given, the
    cells of the table.

    Raises:
        SpecError: a network or an algorithm that cannot learn so; no validation images.
        CheckpointError: the folder holds another training.
    """
    cells = Cells(shared or folder, job.train.batch_size)
    before = cells.rows(subject, [job.setting], "converted")
    snn, _ = prepared(subject.qann, job.setting, subject.calibration)
    teacher = subject.qann if job.teacher == "qann" else subject.ann
    if not job.train.distillation_weight:
        teacher = None
    meter = meter_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    meter.start()
    done = finetune(
        snn, splits, job.how(), job.train, folder / "learn", classes=classes, teacher=teacher
    )
    peak = _kept(folder / "learn" / "peak.json", round(meter.stop(), 1))
    after = cells.rows_of(subject, done.snn, job.setting)
    if cells.processes.first:
        archive.save(done.snn, folder / "network")
    epochs = done.history.rows
    told = [
        replace(
            row,
            seed=job.train.seed,
            algorithm=job.algorithm,
            epochs=len(epochs),
            seconds_per_epoch=statistics.median(row.seconds for row in epochs),
            peak_mib=peak,
        )
        for row in after
    ]
    return [*before, *told], done.history


def _kept(path: Path, measured: float) -> float:
    """The number that was measured when the training ran, not when it was found finished."""
    if not path.is_file():
        write_json(path, {"peak_mib": measured})
    return float(read_json(path)["peak_mib"])
