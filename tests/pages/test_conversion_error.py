"""The page of the study of conversion error: what its script makes of stored rows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from paths import ROOT
from studies import script

from mt_convert.calibration.text import parse
from mt_convert.evaluation.analysis import Analysis
from mt_convert.evaluation.peers.converters import PEERS
from mt_convert.evaluation.settings import METHODS
from mt_convert.report.rows import Row, results_from_json

FOLDER = ROOT / "eval" / "conversion_error"


page = script(FOLDER / "page.py")

ROW = Row(
    model="resnet20_cifar",
    dataset="JPEG CIFAR-10",
    images=2000,
    presentation="every_step",
    mode="parallel",
    signed=True,
    n=3,
    T=4,
    ann_accuracy=88.0,
    qann_accuracy=87.5,
    snn_accuracy=85.0,
    agreement=0.9,
    exact_share=0.0,
    spikes_per_neuron=1.0,
    ladder="uniform",
    levels=255,
    weight_bits=None,
    whole_window=False,
    settling_T=None,
    seed=0,
)
LTB = dataclasses.replace(ROW, method="spikingjelly_ltb", n=1, signed=False, T=32)


def row(**columns: Any) -> Row:
    return dataclasses.replace(ROW, **columns)


@pytest.fixture(scope="module")
def stored() -> list[Row]:
    return results_from_json(json.loads((FOLDER / "results.json").read_text()))


@pytest.mark.slow
def test_the_stored_files_are_what_the_stored_rows_say(stored: list[Row]) -> None:
    looked = [Analysis.from_json(item) for item in json.loads((FOLDER / "errors.json").read_text())]
    made = page.files((FOLDER / "head.md").read_text(), stored, [], looked)
    assert set(page.BESIDE) - {"method.md"} == set(made) - {"README.md"}
    for name, content in made.items():
        written = (FOLDER / name).read_text().split("\n## Not made")[0].rstrip()
        assert content.rstrip() == written, name
    assert len(stored) > 50


def test_the_page_has_two_screens_and_names_all_that_lies_beside_it() -> None:
    text = (FOLDER / "README.md").read_text()
    assert len(text.split()) < 900
    assert text.count("\n") < 70
    for name in page.BESIDE:
        assert f"]({name})" in text
        assert (FOLDER / name).is_file()


def test_every_stored_row_says_what_was_done(stored: list[Row]) -> None:
    for item in stored:
        name = item.method.removesuffix("_delayed")
        assert name in METHODS or name in PEERS
        parse(item.calibration)
        assert item.images in (2000, 10_000)
        assert item.ann_accuracy is not None
        assert (item.calibrated_T is None) == (item.calibration == "none")


def test_stored_trained_networks_are_exact_where_one_step_reaches_all_levels(
    stored: list[Row],
) -> None:
    found = [
        item
        for item in stored
        if item.method == "mt_signed" and item.calibration == "none" and item.n >= item.levels
    ]
    assert found
    assert all(item.exact_share == 1 and item.agreement == 1 for item in found)


@pytest.mark.parametrize(("theirs", "verdict"), [(84.0, " above "), (85.0, " not above ")])
def test_an_aim_is_reached_only_if_ours_is_above(theirs: float, verdict: str) -> None:
    (line,) = page.training_free([ROW, dataclasses.replace(LTB, snn_accuracy=theirs)])
    assert verdict in line
    assert f"{theirs:.2f} %" in line
    assert "best of the calibrations" not in line


def test_the_best_of_the_calibrations_is_named_as_such() -> None:
    better = row(calibration="mse", snn_accuracy=86.0)
    (line,) = page.training_free([ROW, better, dataclasses.replace(LTB, snn_accuracy=85.5)])
    assert "not above" in line
    assert "with the best of the calibrations mt_uniform, mse (signed, n = 3, T = 4): 86.00" in line


def test_one_threshold_counts_only_where_every_step_up_to_16_is_there_and_above() -> None:
    theirs = [dataclasses.replace(LTB, T=T, snn_accuracy=50.0) for T in (1, 16, 32)]
    ours = row(method="signed_if", n=1, calibration="mse", snn_accuracy=51.0)
    both = [dataclasses.replace(ours, T=T) for T in (1, 16)]
    (line,) = page.one_threshold([*theirs, *both])
    assert line.endswith("mse (signed).")
    assert page.one_threshold([*theirs, both[0]]) == []
    (line,) = page.one_threshold([*theirs, both[0], dataclasses.replace(both[1], snn_accuracy=50)])
    assert line.endswith("none of the calibrations.")


def test_gains_are_points_above_the_same_row_without() -> None:
    rows = [ROW, row(T=8, snn_accuracy=88.0), row(calibration="mse", snn_accuracy=86.5)]
    rows.append(row(calibration="mse", T=8, snn_accuracy=87.0))
    lines = page.gains(rows, "calibration", "none")
    assert lines[2].endswith("| none | 85.00 | 88.00 |")
    assert lines[3].endswith("| mse | +1.50 | -1.00 |")
    alone = [row(calibration=name, snn_accuracy=86.5) for name in ("mse", "gaussian")]
    assert page.gains(alone, "calibration", "none")[2].endswith("| mse | (86.50) |")
    assert page.gains([ROW], "calibration", "none") == ["No cell of this part is made yet.", ""]


def test_the_trained_route_is_judged_on_all_images() -> None:
    trained = row(method="mt_signed", weight_bits=4, levels=15, qann_accuracy=85.3, images=10_000)
    (line,) = page.close_to_qann([trained, dataclasses.replace(trained, images=2000)])
    assert "-0.30 points from the QANN, within 0.3" in line
    (line,) = page.close_to_qann([dataclasses.replace(trained, qann_accuracy=85.4)])
    assert "not within 0.3" in line


def test_what_is_missing_is_counted_on_the_page() -> None:
    text = page.text("# Head\n", [ROW], ["float: a", "float: b", "float: a"], [])
    assert "3 cells of the sweep are not made yet" in text
    assert text.count("\n- float: ") == 2
