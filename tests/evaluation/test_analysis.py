"""Errors by cause and energy of the settings of a table, stored group by group."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from networks import images, lived_in
from torch import nn

from mt_convert.calibration.spec import MeanSquaredError
from mt_convert.data import DataSpec, batches, tensor_set
from mt_convert.errors import CheckpointError
from mt_convert.evaluation.analysis import Analysis, analyses
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.errors.layer_errors import layer_errors
from mt_convert.evaluation.evaluate import convert_for
from mt_convert.evaluation.settings import METHODS, PeerSetting, Setting
from mt_convert.evaluation.subject import Subject
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec

SPEC = DataSpec("mine", image_size=8, channels=3, classes=3, mean=(0.5,), std=(0.125,))
PLAIN = [Setting(Uniform(n), (1, 3)) for n in (1, 3)]
CALIBRATED = dataclasses.replace(
    METHODS["mt_uniform"].setting(2, (3,)), calibration=(MeanSquaredError(),), calibrated_T=3
)


@pytest.fixture(scope="module")
def subject() -> Subject:
    layers = (nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten())
    ann = lived_in(nn.Sequential(*layers, nn.Linear(6, 3)), seed=4)
    calibration = images(16, (3, 8, 8), seed=2)
    pixels = images(22, (3, 8, 8), seed=3).div(8).add(0.5).clamp(0, 1)
    return Subject(
        qann=quantize(ann, QuantSpec(act_bits=2), calibration=calibration),
        ann=ann,
        test=tensor_set(pixels, torch.arange(22) % 3, SPEC),
        calibration=calibration,
        describe={"model": "small", "dataset": "made up", "seed": 4},
    )


@pytest.mark.slow
def test_settings_that_differ_in_n_alone_are_one_analysis(subject: Subject, tmp_path: Path) -> None:
    found = analyses(subject, [*PLAIN, CALIBRATED, PeerSetting("sinabs", (1,))], 10, tmp_path)
    assert [item.errors.settings for item in found] == [[(1, 1), (1, 3), (3, 1), (3, 3)], [(2, 3)]]
    assert [item.calibration for item in found] == ["none", "mse"]
    assert [sorted(item.energy) for item in found] == [[1, 3], [2]]
    assert found[1].calibrated_T == 3
    assert "calibrated by mse for T = 3" in found[1].title


@pytest.mark.slow
def test_an_analysis_holds_what_its_parts_measure(subject: Subject, tmp_path: Path) -> None:
    (found,) = analyses(subject, PLAIN, 10, tmp_path)
    snn = {item.ladder.n: convert_for(subject.qann, item, None)[0] for item in PLAIN}
    shown, labels = next(iter(batches(subject.test, 10)))
    table = layer_errors(snn, [(shown, labels)], time_steps=(1, 3), ann=subject.ann)
    assert found.errors == table
    wanted = energy(snn[3], shown, time_steps=(1, 3)).to_json()["totals"]
    assert found.energy[3]["totals"] == json.loads(json.dumps(wanted))
    assert found.errors.images == 10


@pytest.mark.slow
def test_a_calibrated_network_is_compared_with_the_quantizers_that_it_came_from(
    subject: Subject, tmp_path: Path
) -> None:
    (found,) = analyses(subject, [CALIBRATED], 22, tmp_path)
    plain = dataclasses.replace(CALIBRATED, calibration=(), calibrated_T=None)
    (without,) = analyses(subject, [plain], 22, tmp_path)
    for layer in found.errors.layers:
        one, other = (item.errors.error(layer, "forced", 2, 3) for item in (found, without))
        assert one.quantization == other.quantization
    assert found.errors != without.errors


def test_an_analysis_is_read_again_and_a_damaged_one_is_named(
    subject: Subject, tmp_path: Path
) -> None:
    (found,) = analyses(subject, PLAIN, 8, tmp_path)
    (path,) = (tmp_path / "analyses").iterdir()
    before = path.stat().st_mtime_ns
    assert analyses(subject, PLAIN, 8, tmp_path) == [found]
    assert path.stat().st_mtime_ns == before
    assert Analysis.from_json(json.loads(json.dumps(found.to_json()))) == found
    for damaged in ({}, {"schema": "mt_convert.analysis/1"}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError):
            analyses(subject, PLAIN, 8, tmp_path)


def test_the_page_tells_errors_and_energy_of_every_n(subject: Subject, tmp_path: Path) -> None:
    (found,) = analyses(subject, PLAIN, 8, tmp_path)
    page = found.markdown()
    assert page.startswith("## small, made up, mt_uniform, once, signed")
    assert page.count("### Energy, n = ") == 2
    assert "Not counted:" in page
