"""Calibrations are values that refuse what is out of range, and have names that read back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mt_convert.calibration.report import CalibrationReport, CalibrationRow
from mt_convert.calibration.spec import (
    NAMES,
    Calibration,
    Gaussian,
    InitialPotential,
    LayerWise,
    Loss,
    Maximum,
    MeanSquaredError,
    MembraneMean,
    Objective,
    Per,
    Percentile,
    PercentileAlphaBeta,
    ThresholdBudget,
)
from mt_convert.calibration.text import name_of, parse
from mt_convert.errors import SpecError

POSITIVE = some.floats(1e-9, 1e9)
COUNT = some.integers(1, 10**6)
STEPS: dict[type, some.SearchStrategy[Any]] = {
    InitialPotential: some.builds(InitialPotential, some.floats(-100, 100)),
    Percentile: some.builds(Percentile, some.floats(1e-3, 100)),
    Maximum: some.builds(Maximum, POSITIVE),
    MeanSquaredError: some.builds(MeanSquaredError, COUNT),
    PercentileAlphaBeta: some.builds(PercentileAlphaBeta, some.sampled_from(Objective)),
    Gaussian: some.just(Gaussian()),
    MembraneMean: some.builds(MembraneMean, COUNT, some.sampled_from(Per)),
    LayerWise: some.builds(LayerWise, COUNT, POSITIVE, COUNT, some.sampled_from(Loss)),
    ThresholdBudget: POSITIVE.map(lambda bound: ThresholdBudget(levels=bound))
    | POSITIVE.map(lambda bound: ThresholdBudget(spikes=bound)),
}


@given(some.lists(some.one_of(*STEPS.values()), max_size=4))
def test_a_name_reads_back_as_the_same_calibrations(steps: list[Calibration]) -> None:
    assert parse(name_of(steps)) == tuple(steps)


def test_every_calibration_has_a_name_and_is_tried() -> None:
    assert set(STEPS) == set(NAMES.values())
    assert len(NAMES) >= 9


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("none", ()),
        ("percentile", (Percentile(),)),
        ("percentile(99)+membrane_mean", (Percentile(99.0), MembraneMean())),
        (
            " alpha_beta( signed ) + gaussian() ",
            (PercentileAlphaBeta(Objective.SIGNED), Gaussian()),
        ),
        ("thresholds(levels=4)", (ThresholdBudget(levels=4),)),
        ("thresholds(spikes=1e+2)+mse(8)", (ThresholdBudget(spikes=100), MeanSquaredError(8))),
        ("membrane_mean(2,per=neuron)", (MembraneMean(2, Per.NEURON),)),
    ],
)
def test_values_stand_in_order_or_by_name(text: str, steps: tuple[Calibration, ...]) -> None:
    assert parse(text) == steps


def test_a_name_leaves_out_what_is_default() -> None:
    assert name_of(()) == "none"
    assert name_of([Percentile(99.9), Maximum(1.0), LayerWise()]) == "percentile+maximum+layer_wise"
    assert name_of([Percentile(99.0), MembraneMean(3)]) == "percentile(99)+membrane_mean(rounds=3)"
    assert name_of([PercentileAlphaBeta(Objective.SIGNED)]) == "alpha_beta(signed)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("percentil(99)", "did you mean percentile?"),
        ("", "nothing"),
        ("mse+", "nothing"),
        ("mse(", "is no calibration"),
        ("percentile(0)", "allowed: above 0, up to 100"),
        ("percentile(most)", "percent='most'"),
        ("percentile(99,98)", "allowed: percent"),
        ("percentile(99,percent=98)", "given twice"),
        ("mse(2.5)", "allowed: whole numbers from 1"),
        ("alpha_beta(mean)", "allowed: mse, signed"),
        ("membrane_mean(pre=neuron)", "did you mean per?"),
        ("gaussian(3)", "it takes no values"),
        ("thresholds", "give one of them"),
        ("thresholds(levels=2,spikes=1)", "give one of them"),
    ],
)
def test_a_fault_says_what_is_allowed(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse(text)
    assert expected in str(raised.value)


def test_all_faults_of_a_text_come_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        parse("maximum(-1)+membrane_mean(rounds=0,per=layer)+gausian")
    assert len(raised.value.faults) == 4


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (InitialPotential, {"v0": float("nan")}),
        (Percentile, {"percent": 100.5}),
        (Percentile, {"percent": True}),
        (Maximum, {"scale": float("inf")}),
        (MeanSquaredError, {"candidates": 0}),
        (MembraneMean, {"rounds": 1.0}),
        (LayerWise, {"lr": 0.0, "epochs": 0, "batch_size": 0, "loss": "hinge"}),
        (ThresholdBudget, {"levels": 0.0}),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(kind: type, values: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as raised:
        kind(**values)
    assert {fault.where for fault in raised.value.faults} == set(values)


def test_words_become_members() -> None:
    assert PercentileAlphaBeta("signed").objective is Objective.SIGNED  # type: ignore[arg-type]
    assert MembraneMean(per="neuron").per is Per.NEURON  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ the report

ROWS = (
    CalibrationRow("percentile", "act1", "mean square", 0.5, 0.25, True),
    CalibrationRow("percentile", "act2", "mean square", 0.5, 0.75, False),
    CalibrationRow("gaussian", "act1", "learned gaps", 0.0, 0.0, False),
)
REPORT = CalibrationReport(ROWS, images=12, held_out=4, time_steps=8)


def test_a_report_is_plain_data_with_a_schema() -> None:
    stored = REPORT.to_json()
    assert stored["schema"] == "mt_convert.calibration/1"
    assert [CalibrationRow(**row) for row in stored["rows"]] == list(ROWS)
    assert {name: stored[name] for name in ("images", "held_out", "time_steps")} == {
        "images": 12,
        "held_out": 4,
        "time_steps": 8,
    }


def test_a_report_in_words_counts_what_was_kept_and_the_loss_that_is_left() -> None:
    lines = str(REPORT).splitlines()
    assert lines[0] == "calibrated for T = 8 on 12 images, losses on 4 held out"
    assert lines[1] == "  percentile  1 of 2 kept  loss 0.5 -> 0.375"
    assert len(lines) == 3


def test_the_page_has_a_line_for_every_row() -> None:
    page = REPORT.markdown().splitlines()
    assert "| percentile | act2 | mean square | 0.5 | 0.75 | no |" in page
    assert sum(line.startswith("| ") for line in page) == 2 + len(ROWS)


def test_rows_of_a_report_have_the_documented_columns() -> None:
    names = [item.name for item in dataclasses.fields(CalibrationRow)]
    assert names == ["calibration", "layer", "loss", "before", "after", "kept"]
