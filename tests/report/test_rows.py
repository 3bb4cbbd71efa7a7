"""Rows as files and as text: nothing is lost, nothing is rounded up to a claim."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from results import ROW

from mt_convert.errors import CheckpointError
from mt_convert.report.columns import COLUMNS, LEGEND, cells, columns, markdown_table
from mt_convert.report.rows import RESULTS_SCHEMA, Row, results_from_json, results_to_json

OTHER = dataclasses.replace(ROW, n=1, settling_T=None, agreement=1 / 3, presentation="every_step")


def printed(row: Row) -> dict[str, str]:
    """The cells of a row by the name of their column."""
    return dict(zip(COLUMNS, cells(row), strict=True))


def test_rows_go_through_a_file_unchanged() -> None:
    text = json.dumps(results_to_json([ROW, OTHER]), allow_nan=False)
    assert results_from_json(json.loads(text)) == [ROW, OTHER]
    assert results_from_json(results_to_json([])) == []


def test_the_file_names_its_schema_and_the_promised_columns() -> None:
    stored = results_to_json([ROW])
    assert stored["schema"] == RESULTS_SCHEMA == "mt_convert.results/2"
    assert list(stored["rows"][0])[:14] == [
        *("model", "dataset", "images", "presentation", "mode", "signed", "n", "T"),
        *("ann_accuracy", "qann_accuracy", "snn_accuracy", "agreement", "exact_share"),
        "spikes_per_neuron",
    ]
    assert list(stored["rows"][0]) == Row.fields()


def test_columns_of_later_versions_are_passed_over() -> None:
    stored = results_to_json([ROW])
    stored["rows"][0]["synops"] = 5
    assert results_from_json(stored) == [ROW]


def test_rows_of_the_first_schema_are_read_with_what_they_could_not_say() -> None:
    late = ("weights", "spacing", "rounding", "functions", "run", "digest")
    row = {name: value for name, value in dataclasses.asdict(ROW).items() if name not in late}
    stored = {"schema": "mt_convert.results/1", "rows": [row]}
    assert results_from_json(stored) == [ROW]
    assert (ROW.weights, ROW.spacing, ROW.run, ROW.digest) == ("uniform", "equal", None, None)


def test_the_ladder_of_older_rows_has_the_name_it_has_in_every_other_table() -> None:
    stored = results_to_json([dataclasses.replace(ROW, ladder="poweroftwo")])
    assert [row.ladder for row in results_from_json(stored)] == ["power_of_two"]


@pytest.mark.parametrize(
    "stored",
    [None, [], 3, {}, {"rows": []}, {"schema": "mt_convert.results/3", "rows": []}],
)
def test_another_schema_is_refused_and_the_right_one_named(stored: Any) -> None:
    with pytest.raises(CheckpointError, match=r"schema must be mt_convert\.results/2"):
        results_from_json(stored)


@pytest.mark.parametrize("name", ["agreement", "T", "seed"])
def test_a_row_without_a_column_is_refused_and_the_column_named(name: str) -> None:
    stored = results_to_json([ROW])
    del stored["rows"][0][name]
    with pytest.raises(CheckpointError, match=f"lacks '{name}'"):
        results_from_json(stored)


@pytest.mark.parametrize("rows", [None, 5, [3], [[]]])
def test_rows_that_are_no_rows_are_refused(rows: Any) -> None:
    with pytest.raises(CheckpointError):
        results_from_json({"schema": RESULTS_SCHEMA, "rows": rows})


@pytest.mark.parametrize("name", ["agreement", "exact_share"])
@pytest.mark.parametrize("value", [1 - 1e-4, 9999 / 10_000, 99_999 / 100_000, 1 - 2**-53])
def test_a_share_below_one_is_never_printed_as_one(name: str, value: float) -> None:
    assert printed(dataclasses.replace(ROW, **{name: value}))[name] == "99.99"


@pytest.mark.parametrize(("value", "text"), [(1.0, "100.00"), (0.5, "50.00"), (0.99984, "99.98")])
def test_other_shares_are_printed_to_four_places(value: float, text: str) -> None:
    assert printed(dataclasses.replace(ROW, exact_share=value))["exact_share"] == text


def test_cells_say_what_the_row_says() -> None:
    assert {name: printed(ROW)[name] for name in columns([ROW])} == {
        "presentation": "once",
        "ladder": "uniform",
        "mode": "parallel",
        "signed": "yes",
        "n": "15",
        "T": "1",
        "ann_accuracy": "91.23",
        "qann_accuracy": "90.87",
        "snn_accuracy": "90.87",
        "agreement": "100.00",
        "exact_share": "100.00",
        "spikes_per_neuron": "0.12",
        "settling_T": "1",
    }
    window = printed(dataclasses.replace(OTHER, whole_window=True, signed=False))
    assert window["presentation"] == "every step, whole window"
    assert (window["signed"], window["settling_T"]) == ("no", "–")


def test_the_markdown_table_is_whole_and_holds_the_ann_accuracy() -> None:
    head, rule, *lines = markdown_table([ROW, OTHER]).splitlines()
    assert len(lines) == 2
    names = columns([ROW, OTHER])
    assert {line.count("|") for line in (head, rule, *lines)} == {len(names) + 1}
    assert all(COLUMNS[name] in head for name in names)
    for line in lines:
        assert re.search(r"\| 91\.23 \| 90\.87 \|", line)


def test_the_legend_explains_the_shares() -> None:
    for name in ("agreement", "exact_share", "spikes_per_neuron", "settling_T"):
        assert f"{COLUMNS[name].removesuffix(' %')}: " in LEGEND


def test_what_tells_networks_and_methods_apart_is_a_column_where_it_differs() -> None:
    usual = columns([ROW, ROW])
    for name, other in (
        ("model", "vgg"),
        ("dataset", "digits"),
        ("weight_bits", None),
        ("levels", 3),
        ("qat_noise", "drop"),
        ("method", "qcfs"),
        ("calibration", "mse"),
    ):
        assert name not in usual
        assert name in columns([ROW, dataclasses.replace(ROW, **{name: other})])


def test_what_was_done_to_all_rows_alike_is_not_left_out() -> None:
    calibrated = dataclasses.replace(ROW, calibration="mse", calibrated_T=8, T=2)
    assert "calibration" in columns([calibrated])
    assert printed(calibrated)["calibration"] == "mse, for T = 8"
    assert printed(dataclasses.replace(calibrated, T=8))["calibration"] == "mse"


def test_rows_stored_before_a_column_existed_are_read() -> None:
    stored = results_to_json([ROW])
    for name in ("method", "calibration", "calibrated_T", "qat_noise"):
        del stored["rows"][0][name]
    assert results_from_json(stored) == [ROW]
