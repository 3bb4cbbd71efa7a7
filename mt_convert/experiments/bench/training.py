"""``mt-convert bench --training``: steps of training a network float, quantized and spiking.

Eager and compiled, in float32 and bfloat16, all in turns within one run, so that their ratios mean
something on a machine that does other things meanwhile. Leaves ``training.json`` and
``training.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import error_line
from ...report.records import of_schema, with_schema
from ...system.devices import compile_by_torch, compile_options
from ...system.progress import progress
from ...system.storage import atomic, read_json, write_json
from ...training.algorithm import Backpropagation, Lesson
from ...training.finetune.learner import TrainableSpikingModel
from ...training.optimizer import make_optimizer, train_mode
from ...training.spec import TrainSpec
from .network import Network, thresholds_for
from .rows import TRAINING_SCHEMA
from .timing import Clock, Spread, clock_of, interleave, speed_ups

SCHEMA = TRAINING_SCHEMA
PRECISIONS = ("no", "bf16")
HEAD = """# Training speed

Written by `mt-convert bench --training`. A step is forward, backward and optimizer (AdamW) on
made-up images; every line had its turn in every round. "of float" is how many times as long as the
float network's step of the same precision and form in the same round, the median of the rounds.
"""


@dataclass(frozen=True)
class TrainingRow:
    """A way to train a network.

    Units: milliseconds of a step of ``batch`` images, median, least and most of the rounds;
        ``of_float`` the median ratio to the float network's step of the same precision and form,
        None for that itself or where it could not run; T steps of a spiking network.
    """

    network: str
    trained: str
    T: int | None
    n: int | None
    compiled: bool
    precision: str
    batch: int
    milliseconds: float
    least: float
    most: float
    images_per_second: float
    of_float: float | None


@dataclass(frozen=True)
class NotTrained:
    """A way that cannot run here, and why."""

    network: str
    trained: str
    compiled: bool
    precision: str
    reason: str


@dataclass(frozen=True)
class TrainingSpeed:
    """All rows, what is missing, and the threads of all of them."""

    rows: tuple[TrainingRow, ...]
    absent: tuple[NotTrained, ...]
    threads: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """The content of ``training.json``."""
        return with_schema(SCHEMA, self)


def training_speed_from_json(stored: Any) -> TrainingSpeed:
    """What `TrainingSpeed.to_json` described.

    Raises:
        CheckpointError: another schema, or a column missing or of another type.
    """
    return of_schema(SCHEMA, TrainingSpeed, "training speeds", stored)


@dataclass(frozen=True)
class Way:
    """What is trained, and how."""

    trained: str
    compiled: bool
    precision: str
    T: int | None = None
    n: int | None = None

    def __str__(self) -> str:
        form = "compiled" if self.compiled else "eager"
        return f"{self.trained}, {form}, {_precision(self.precision)}"


def ways(network: Network, time_steps: Sequence[int]) -> list[Way]:
    """All that are timed, the float network's first."""
    return [
        way
        for compiled in (False, True)
        for precision in PRECISIONS
        for way in (
            Way("float", compiled, precision),
            Way("quantized", compiled, precision),
            *(
                Way("spiking", compiled, precision, T, thresholds_for(network.levels, T))
                for T in time_steps
            ),
        )
    ]


def time_training(
    network: Network,
    time_steps: Sequence[int],
    batch: int,
    rounds: int,
    clock: Clock | None = None,
    chosen: Sequence[Way] | None = None,
) -> TrainingSpeed:
    """Time a step of every way, or of those ``chosen``, in turns; what fails is named with the
    reason."""
    steps: dict[Way, Callable[[Tensor], None]] = {}
    absent = []
    generator = torch.Generator().manual_seed(0)
    probe = network.images(batch, generator)
    chosen = ways(network, time_steps) if chosen is None else chosen
    for way in progress(chosen, f"{network.name}: first steps"):
        try:
            step = step_of(network, way)
            step(probe)
        except Exception as error:  # whatever a compiler or a kernel says
            form = (way.trained, way.compiled, way.precision)
            absent.append(NotTrained(network.name, *form, error_line(error)))
        else:
            steps[way] = step
    seconds: dict[Way, list[float]] = {way: [] for way in steps}
    clock = clock or clock_of(network.device)
    turns = interleave(
        list(steps.values()), lambda: network.images(batch, generator), rounds, clock
    )
    for turn in progress(turns, f"{network.name}: rounds", total=rounds):
        for way, value in zip(steps, turn, strict=True):
            seconds[way].append(value)
    rows = tuple(_rows(network.name, seconds, batch))
    return TrainingSpeed(rows, tuple(absent), torch.get_num_threads(), network.device.type)


def step_of(network: Network, way: Way) -> Callable[[Tensor], None]:
    """A training step: forward, backward, optimizer; the network's own weights stay."""
    model = _model(network, way).to(network.device)
    spec = TrainSpec(epochs=1, optimizer="adamw", lr=1e-4, mixed_precision=way.precision)
    optimizer, _ = make_optimizer(model, spec, 1)
    train_mode(model, frozen_norm=False)
    called: Any = model
    if way.compiled:
        called = compile_by_torch(model, **compile_options())
    device, algorithm = network.device, Backpropagation()

    def step(images: Tensor) -> None:
        labels = torch.arange(len(images), device=device) % 2
        half = way.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            algorithm.learn(
                Lesson(
                    network=called,
                    images=images,
                    loss=lambda logits: F.cross_entropy(logits.float(), labels),
                    backward=lambda loss: loss.backward(),
                    update=lambda: None,
                    time_steps=way.T or 1,
                )
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _model(network: Network, way: Way) -> nn.Module:
    """A copy of what is trained."""
    if way.trained == "spiking":
        assert way.T is not None
        assert way.n is not None
        return TrainableSpikingModel(network.spiking(way.n), way.T)
    return copy.deepcopy(network.ann if way.trained == "float" else network.qann)


def _rows(name: str, seconds: dict[Way, list[float]], batch: int) -> Iterator[TrainingRow]:
    """The rows of what was timed."""
    for way, values in seconds.items():
        base = seconds.get(Way("float", way.compiled, way.precision))
        spread = Spread.of(values)
        ratio = None
        if base is not None and way.trained != "float":
            ratio = round(1 / speed_ups(values, base).median, 3)
        yield TrainingRow(
            name,
            way.trained,
            way.T,
            way.n,
            way.compiled,
            way.precision,
            batch,
            round(1000 * spread.median, 2),
            round(1000 * spread.low, 2),
            round(1000 * spread.high, 2),
            round(batch / spread.median, 1),
            ratio,
        )


# ------------------------------------------------------------------------------------------- page

HEADINGS = ("trained", "T", "n", "form", "precision", "ms a step", "images/s", "of float")


def cells(row: TrainingRow) -> list[str]:
    """A row as text, under `HEADINGS`."""
    return [
        row.trained,
        "–" if row.T is None else str(row.T),
        "–" if row.n is None else str(row.n),
        "compiled" if row.compiled else "eager",
        _precision(row.precision),
        f"{row.milliseconds:.1f}",
        f"{row.images_per_second:.0f}",
        "–" if row.of_float is None else f"{row.of_float:.2f}",
    ]


def fastest(speed: TrainingSpeed, name: str, trained: str = "quantized") -> TrainingRow | None:
    """The way in which a network trains fastest here; None if none ran."""
    rows = [row for row in speed.rows if (row.network, row.trained) == (name, trained)]
    return min(rows, key=lambda row: row.milliseconds, default=None)


def findings(speed: TrainingSpeed) -> Iterator[str]:
    """What the rows say, computed."""
    for name in dict.fromkeys(row.network for row in speed.rows):
        best = fastest(speed, name)
        if best is None:
            continue
        form = f"train.compile={str(best.compiled).lower()}"
        ratio = "" if best.of_float is None else f", {best.of_float:.2f} × the float network's"
        yield (
            f"{name}: a quantized step is fastest with {form} "
            f"train.mixed_precision={best.precision}: {best.milliseconds:.1f} ms{ratio}"
        )


def markdown(speed: TrainingSpeed, head: str = HEAD) -> str:
    """The page."""
    lines = [head.rstrip(), ""]
    for name in dict.fromkeys(row.network for row in speed.rows):
        rows = [row for row in speed.rows if row.network == name]
        lines += [f"## {name}, batch {rows[0].batch}, {_where(speed)}", ""]
        lines += [f"| {' | '.join(HEADINGS)} |", "|" + " --- |" * len(HEADINGS)]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows]
        lines.append("")
    lines += [f"- {text}" for text in findings(speed)]
    lines += [f"- {text}" for text in missing(speed)]
    return "\n".join(lines) + "\n"


def rich_tables(speed: TrainingSpeed) -> Iterator[Table]:
    """The rows for a terminal, a table for each network."""
    for name in dict.fromkeys(row.network for row in speed.rows):
        rows = [row for row in speed.rows if row.network == name]
        title = f"{name}, batch {rows[0].batch}, {_where(speed)}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in HEADINGS[:5] else "right")
        for row in rows:
            table.add_row(*cells(row))
        yield table


def publish(speeds: Sequence[TrainingSpeed], out: Path, head: str = HEAD) -> TrainingSpeed:
    """Write table and page of several networks."""
    first = speeds[0]
    rows = tuple(row for item in speeds for row in item.rows)
    absent = tuple(item for speed in speeds for item in speed.absent)
    speed = TrainingSpeed(rows, absent, first.threads, first.device)
    write_json(out / "training.json", speed.to_json())
    with atomic(out / "training.md") as temporary:
        temporary.write_text(markdown(speed, head))
    return speed


def read(out: Path) -> TrainingSpeed:
    """What `publish` wrote."""
    return read_json(out / "training.json", training_speed_from_json)


def missing(speed: TrainingSpeed) -> Iterator[str]:
    """What is not timed, with reasons."""
    for item in speed.absent:
        way = Way(item.trained, item.compiled, item.precision)
        yield f"not timed: {item.network}, {way}: {item.reason}"


def _where(speed: TrainingSpeed) -> str:
    """The machine, in words."""
    threads = f"{speed.threads} thread" + "s" * (speed.threads != 1)
    return threads if speed.device == "cpu" else speed.device


def _precision(name: str) -> str:
    """A precision, in words."""
    return {"no": "float32", "bf16": "bfloat16"}[name]
