"""Training steps timed in turns: what is timed, what the numbers are, what cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_training import IMAGES, normed, quantized_net, same_weights
from torch import Tensor

from mt_convert.errors import CheckpointError
from mt_convert.experiments.bench import command, training
from mt_convert.experiments.bench.network import Network
from mt_convert.experiments.bench.timing import Clock
from mt_convert.experiments.bench.training import Way

EAGER = [
    Way("float", False, "no"),
    Way("quantized", False, "no"),
    Way("spiking", False, "no", 2, 4),
    Way("quantized", False, "bf16"),
]


def network() -> Network:
    """A small network, float and quantized."""
    return Network("small", normed(), quantized_net(), IMAGES[:8])


def ticking(seconds: float) -> Clock:
    """A clock on which every look is so much later."""
    now = [0.0]

    def tick() -> float:
        now[0] += seconds
        return now[0]

    return Clock(now=tick, pause=lambda: None)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs no compiler."""
    monkeypatch.setattr(training, "ways", lambda *_: EAGER)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_rows_hold_steps_rates_and_ratios_and_are_read_again() -> None:
    speed = training.time_training(network(), (2,), 8, 5, ticking(0.5))
    assert [(row.trained, row.T, row.n, row.precision) for row in speed.rows] == [
        ("float", None, None, "no"),
        ("quantized", None, None, "no"),
        ("spiking", 2, 4, "no"),
        ("quantized", None, None, "bf16"),
    ]
    assert {row.milliseconds for row in speed.rows} == {500.0}
    assert {row.images_per_second for row in speed.rows} == {16.0}
    assert [row.of_float for row in speed.rows] == [None, 1.0, 1.0, None], "bf16 has no float step"
    assert training.training_speed_from_json(json.loads(json.dumps(speed.to_json()))) == speed
    text = training.markdown(speed)
    assert "| spiking | 2 | 4 | eager | float32 | 500.0 | 16 | 1.00 |" in text
    assert "fastest with train.compile=false train.mixed_precision=no: 500.0 ms, 1.00 ×" in text


@pytest.mark.long
def test_a_step_trains_a_copy() -> None:
    source = network()
    before = network()
    for way in EAGER[:3]:
        step = training.step_of(source, way)
        step(IMAGES[:8])
    assert same_weights(source.ann, before.ann)
    assert same_weights(source.qann, before.qann)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_what_cannot_run_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[Network, Way], Callable[[Tensor], None]] = training.step_of

    def refuse(source: Network, way: Way) -> Callable[[Tensor], None]:
        if way.trained == "float":
            raise RuntimeError("no compiler here\nand 2,000 lines")
        return real(source, way)

    monkeypatch.setattr(training, "step_of", refuse)
    speed = training.time_training(network(), (2,), 8, 5, ticking(0.5))
    assert [row.of_float for row in speed.rows] == [None] * 3
    (line,) = training.missing(speed)
    assert line == "not timed: small, float, eager, float32: RuntimeError: no compiler here"
    assert f"- {line}" in training.markdown(speed)


@pytest.mark.slow
def test_every_way_is_timed_in_both_forms_and_precisions() -> None:
    found = training.ways(network(), (1, 2))
    assert len(found) == len(set(found)) == 4 * (1 + 1 + 2)
    assert {(way.compiled, way.precision) for way in found} == {
        (form, precision) for form in (False, True) for precision in ("no", "bf16")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_the_command_takes_the_largest_batch_and_writes_table_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_network", lambda *_: network())
    options = command.BenchOptions(("small",), batches=(1, 12), time_steps=(2,))
    command.run_training(options, tmp_path)
    speed = training.read(tmp_path)
    assert {row.batch for row in speed.rows} == {12}
    assert speed.threads == torch.get_num_threads()
    console = Console(record=True, width=80)
    command.show_training(tmp_path, console)
    assert "a quantized step is fastest with" in console.export_text()
    assert (tmp_path / "training.md").read_text().startswith("# Training speed")


@pytest.mark.parametrize("stored", [None, {"schema": "other"}, {"schema": training.SCHEMA}])
def test_other_files_are_refused(stored: object) -> None:
    with pytest.raises(CheckpointError, match=r"training speeds|rows: field required"):
        training.training_speed_from_json(stored)
