"""Finished rows belong to one network and one set of images, and add up over processes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images, lived_in
from torch import Tensor, nn

from mt_convert.calibration.spec import MeanSquaredError
from mt_convert.data import DataSpec, batches, tensor_set
from mt_convert.errors import CheckpointError, SpecError
from mt_convert.evaluation import row_cache as cells_module
from mt_convert.evaluation.counter import Counter
from mt_convert.evaluation.evaluate import evaluate
from mt_convert.evaluation.row_cache import RowCache
from mt_convert.evaluation.settings import METHODS, PeerSetting, Setting
from mt_convert.evaluation.subject import Subject
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.system.processes import Processes

SPEC = DataSpec("mine", image_size=8, channels=3, classes=3, mean=(0.5,), std=(0.125,))
SETTINGS = [
    Setting(Uniform(3), (1, 2)),
    Setting(Uniform(1), (1, 3, 5)),
    METHODS["qcfs"].setting(1, (2, 4)),
    dataclasses.replace(METHODS["mt_uniform"].setting(2, (3,)), calibration=(MeanSquaredError(),)),
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A small network on 22 made-up images, which no batch size below divides."""
    layers = (nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten())
    ann = lived_in(nn.Sequential(*layers, nn.Linear(6, 3)), seed=4)
    calibration = images(16, (3, 8, 8), seed=2)
    qann = quantize(ann, QuantSpec(act_bits=2), calibration=calibration)
    pixels = images(22, (3, 8, 8), seed=3).div(8).add(0.5).clamp(0, 1)
    unlabelled = tensor_set(pixels, torch.zeros(22).long(), SPEC)
    with torch.no_grad():
        labels = ann(next(iter(batches(unlabelled, 22)))[0]).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    return Subject(
        qann=qann,
        ann=ann,
        test=tensor_set(pixels, labels, SPEC),
        calibration=calibration,
        describe={"model": "small", "dataset": "made up", "seed": 4},
    )


@pytest.mark.slow
def test_cells_hold_the_rows_of_one_pass_over_all_settings(
    subject: Subject, tmp_path: Path
) -> None:
    rows = RowCache(tmp_path, batch_size=8).rows(subject, SETTINGS, "rows")
    assert subject.ann is not None
    wanted = evaluate(
        subject.ann,
        subject.qann,
        list(batches(subject.test, 8)),
        SETTINGS,
        subject.describe,
        calibration=subject.calibration,
    )
    assert rows == wanted
    assert len(rows) == 8
    assert {row.method for row in rows} == {"mt_uniform", "qcfs"}
    assert len({row.snn_accuracy for row in rows}) > 1


@pytest.mark.slow
def test_a_sweep_that_was_stopped_makes_only_what_is_left(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = RowCache(tmp_path, batch_size=8, steps_together=4)  # a pass for each setting
    whole = RowCache(tmp_path / "whole", batch_size=8).rows(subject, SETTINGS, "rows")
    made: list[Setting | PeerSetting] = []
    counting = cells_module._counter

    def stopped_in_the_third(of: Subject, setting: Setting | PeerSetting):  # type: ignore[no-untyped-def]
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(setting)
        return counting(of, setting)

    monkeypatch.setattr(cells_module, "_counter", stopped_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        cells.rows(subject, SETTINGS, "rows")
    assert made == SETTINGS[:2]
    made.clear()
    assert cells.rows(subject, SETTINGS, "rows") == whole
    assert made == SETTINGS[2:]


@pytest.mark.slow
def test_a_pass_that_is_stopped_leaves_the_passes_before_it(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = RowCache(tmp_path, batch_size=8, steps_together=8)  # 2 + 5, then 4 steps, then mse
    whole = RowCache(tmp_path / "whole", batch_size=8).rows(subject, SETTINGS, "rows")
    add, seen = Counter.add, []

    def stopped_in_the_second(counter: Counter, *batch: Any) -> None:
        seen.append(counter.setting)
        if len(seen) > 7:
            raise KeyboardInterrupt
        add(counter, *batch)

    monkeypatch.setattr(Counter, "add", stopped_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        cells.rows(subject, SETTINGS, "rows")
    assert seen == [*(3 * SETTINGS[:2]), SETTINGS[2], SETTINGS[2]]
    assert [cells.path(subject, item).is_file() for item in SETTINGS] == [True, True, False, False]
    monkeypatch.undo()
    assert cells.rows(subject, SETTINGS, "rows") == whole


@pytest.fixture
def calls(subject: Subject) -> Iterator[list[int]]:
    """The size of every batch that the quantized network is shown."""
    sizes: list[int] = []
    handle = subject.qann.register_forward_hook(
        lambda network, inputs, output: sizes.append(len(inputs[0]))
    )
    yield sizes
    handle.remove()


@pytest.mark.slow
def test_the_quantized_network_runs_once_for_all_settings(
    subject: Subject, tmp_path: Path, calls: list[int]
) -> None:
    rows = RowCache(tmp_path, batch_size=8).rows(subject, SETTINGS, "rows")
    assert calls == [8, 8, 6]
    evaluate(
        subject.ann,  # type: ignore[arg-type]
        subject.qann,
        batches(subject.test, 8),
        SETTINGS,
        subject.describe,
        calibration=subject.calibration,
    )
    assert calls == 2 * [8, 8, 6]
    alone = RowCache(tmp_path / "alone", batch_size=8)
    single = [row for item in SETTINGS for row in alone.rows(subject, [item], "rows")]
    assert single == rows
    assert calls == 5 * [8, 8, 6]  # three that compare levels; the calibrated one reads the answers


@pytest.mark.slow
def test_settings_that_compare_no_levels_need_the_answers_alone(
    subject: Subject, tmp_path: Path, calls: list[int]
) -> None:
    cells = RowCache(tmp_path, batch_size=8)
    cells.rows(subject, [*SETTINGS[3:], METHODS["rate"].setting(1, (2,))], "rows")
    assert calls == [8, 8, 6]
    cells.rows(subject, [dataclasses.replace(SETTINGS[3], time_steps=(5,))], "rows")
    assert calls == [8, 8, 6]


def test_a_setting_named_twice_is_computed_once_and_has_its_rows_twice(
    subject: Subject, tmp_path: Path
) -> None:
    rows = RowCache(tmp_path, batch_size=8).rows(subject, SETTINGS[:1] * 2, "rows")
    assert rows[:2] == rows[2:]


def test_a_pass_is_bounded_by_its_steps_and_its_networks() -> None:
    many = [Setting(Uniform(n), (1,)) for n in range(1, 36)]
    assert [len(some) for some in cells_module._passes(many, 256)] == [16, 16, 3]
    long = [Setting(Uniform(n), (64, 128)) for n in range(1, 4)]
    assert [len(some) for some in cells_module._passes(long, 256)] == [2, 1]
    window = [dataclasses.replace(item, whole_window=True) for item in long]
    assert [len(some) for some in cells_module._passes(window, 256)] == [1, 1, 1]
    assert cells_module._passes(SETTINGS[3:] + SETTINGS[:1], 1) == [SETTINGS[:1], SETTINGS[3:]]


def test_another_network_image_or_setting_is_another_cell(subject: Subject, tmp_path: Path) -> None:
    cells = RowCache(tmp_path)
    qann = copy.deepcopy(subject.qann)
    with torch.no_grad():
        next(qann.parameters()).add_(2**-20)
    others = [
        dataclasses.replace(subject, qann=qann),
        dataclasses.replace(subject, ann=None),
        dataclasses.replace(subject, calibration=subject.calibration.flip(0)),
        dataclasses.replace(subject, data={"root": "elsewhere"}),
        dataclasses.replace(
            subject, test=tensor_set(torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), SPEC)
        ),
    ]
    paths = [cells.path(item, SETTINGS[0]) for item in (subject, *others)]
    paths += [cells.path(subject, setting) for setting in SETTINGS[1:]]
    paths.append(RowCache(tmp_path, batch_size=7).path(subject, SETTINGS[0]))
    assert len(set(paths)) == len(paths)
    assert cells.path(dataclasses.replace(subject), SETTINGS[0]) == paths[0]


class _OneOf(Processes):
    """One of two processes that run one after the other: what they hand over lies in a list."""

    def __init__(self, index: int, handed: list[object]) -> None:
        super().__init__()
        self.share, self.first, self._handed = (index, 2), index == 0, handed

    def sum(self, counts: Tensor) -> Tensor:
        self._handed.append(counts)
        return counts


def test_counts_of_two_processes_sum_to_those_of_one(subject: Subject, tmp_path: Path) -> None:
    handed: list[object] = []
    alone = RowCache(tmp_path / "alone", batch_size=4)
    alone.rows(subject, SETTINGS[:1], "rows")
    (reference,) = (tmp_path / "alone" / "references").iterdir()
    for index in (0, 1):
        cells = RowCache(tmp_path / str(index), 4, _OneOf(index, handed))
        target = tmp_path / str(index) / "references" / reference.name
        target.parent.mkdir(parents=True)
        target.write_text(reference.read_text())
        cells.rows(subject, SETTINGS[:1], "rows")
    first, second = handed
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    both = RowCache(tmp_path / "alone", batch_size=4).rows(subject, SETTINGS[:1], "rows")
    total = (first + second)[0].tolist()
    assert [100 * total[row.T - 1] / 22 for row in both] == [row.snn_accuracy for row in both]
    assert first.sum() > 0
    assert second.sum() > 0


def test_a_damaged_cell_is_named(subject: Subject, tmp_path: Path) -> None:
    cells = RowCache(tmp_path, batch_size=8)
    cells.rows(subject, SETTINGS[:1], "rows")
    path = cells.path(subject, SETTINGS[0])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match=path.name):
        cells.rows(subject, SETTINGS[:1], "rows")
    path.write_text(json.dumps({"schema": "mt_convert.cell/0"}))
    with pytest.raises(CheckpointError, match="no result of this version"):
        cells.rows(subject, SETTINGS[:1], "rows")


def test_a_cell_keeps_the_report_of_its_calibration(subject: Subject, tmp_path: Path) -> None:
    cells = RowCache(tmp_path, batch_size=8)
    cells.rows(subject, SETTINGS[3:], "rows")
    stored = json.loads(cells.path(subject, SETTINGS[3]).read_text())
    assert {row["calibration"] for row in stored["calibration"]["rows"]} == {"mse"}
    assert all(row["calibrated_T"] == 3 for row in stored["results"]["rows"])


def test_no_images_and_a_peer_without_a_float_network_are_told(
    subject: Subject, tmp_path: Path
) -> None:
    nothing = tensor_set(torch.zeros(0, 3, 8, 8), torch.zeros(0).long(), SPEC)
    with pytest.raises(SpecError, match="no images"):
        RowCache(tmp_path).rows(dataclasses.replace(subject, test=nothing), SETTINGS, "rows")
    with pytest.raises(SpecError, match="needs the float network"):
        RowCache(tmp_path).rows(
            dataclasses.replace(subject, ann=None), [PeerSetting("sinabs", (1,))], "rows"
        )


def test_a_network_without_its_float_original_has_no_ann_accuracy(
    subject: Subject, tmp_path: Path
) -> None:
    (row, _) = RowCache(tmp_path, batch_size=8).rows(
        dataclasses.replace(subject, ann=None), SETTINGS[:1], "rows"
    )
    assert row.ann_accuracy is None
    assert row.qann_accuracy == row.snn_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinabs", "spikingjelly_rate"])
def test_peers_stand_in_the_same_table(subject: Subject, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name.split("_")[0])
    rows = RowCache(tmp_path, batch_size=8).rows(subject, [PeerSetting(name, (1, 16))], "rows")
    assert {row.T for row in rows} == {1, 16}
    assert {row.method for row in rows} >= {name}
    assert all(row.images == 22 and row.presentation == "every_step" for row in rows)
    assert max(row.agreement for row in rows) > 0.5
