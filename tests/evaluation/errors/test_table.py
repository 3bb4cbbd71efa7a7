"""The table of errors as a file, as a page and for a terminal: nothing is lost or rounded away."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from typing import Any

import pytest
from error_tables import LAYERS, SETTINGS, made, size
from rich.console import Console

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.evaluation.errors.rows import CAUSES, RATE_EDGES, RESIDUAL_EDGES, VIEWS, WHOLE
from mt_convert.evaluation.errors.table import (
    ERRORS_SCHEMA,
    LAYER_COLUMNS,
    NETWORK_COLUMNS,
    SHARED_COLUMNS,
    ErrorTable,
    percent,
)


def test_a_table_goes_through_a_file_unchanged() -> None:
    for table in (made(), made(ann_agreement=1 / 3, snn_accuracy=90.01), ErrorTable(0, (), (), ())):
        text = json.dumps(table.to_json(), allow_nan=False)
        assert ErrorTable.from_json(json.loads(text)) == table


def test_the_file_names_its_schema_and_its_bins() -> None:
    stored = made().to_json()
    assert stored["schema"] == ERRORS_SCHEMA == "mt_convert.errors/1"
    assert stored["rate_edges"] == list(RATE_EDGES)
    assert stored["residual_edges"] == list(RESIDUAL_EDGES)
    assert len(stored["rates"][0]["rate_counts"]) == len(RATE_EDGES)
    assert len(stored["rates"][0]["residual_counts"]) == len(RESIDUAL_EDGES) + 1


def test_columns_of_later_versions_are_passed_over() -> None:
    stored = made().to_json()
    for row in (stored["errors"][0], stored["rates"][3], stored["logits"][1], stored):
        row["picojoules"] = 5
    stored["errors"][1]["clipping"]["median"] = 0.0
    assert ErrorTable.from_json(stored) == made()


@pytest.mark.parametrize(
    "stored",
    [None, [], 3, {}, {"errors": []}, {"schema": "mt_convert.errors/2", "errors": []}],
)
def test_another_schema_is_refused_and_the_right_one_named(stored: Any) -> None:
    with pytest.raises(CheckpointError, match=r"schema must be mt_convert\.errors/1"):
        ErrorTable.from_json(stored)


@pytest.mark.parametrize(
    ("rows", "name"),
    [("errors", "power"), ("errors", "clipping"), ("rates", "occasional"), ("logits", "agreement")],
)
def test_a_row_without_a_column_is_refused_and_the_column_named(rows: str, name: str) -> None:
    stored = json.loads(json.dumps(made().to_json()))
    del stored[rows][1][name]
    with pytest.raises(CheckpointError, match=f"lacks '{name}'"):
        ErrorTable.from_json(stored)


@pytest.mark.parametrize("rows", [None, 5, [3], [[]]])
@pytest.mark.parametrize("name", ["errors", "rates", "logits"])
def test_rows_that_are_no_rows_are_refused(rows: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match="make it again"):
        ErrorTable.from_json({**made().to_json(), name: rows})


def test_rows_are_found_by_what_they_are_about() -> None:
    table = made()
    assert table.settings == SETTINGS
    assert table.layers == list(LAYERS)
    row = table.error(LAYERS[1], "arrived", 15, 2)
    assert (row.layer, row.view, row.n, row.T) == (LAYERS[1], "arrived", 15, 2)
    assert (table.rate(WHOLE, 1, 32).layer, table.rate(WHOLE, 1, 32).T) == (WHOLE, 32)


@pytest.mark.parametrize(("n", "T"), [(15, 3), (2, 2)])
def test_a_setting_that_was_not_measured_is_refused_and_named(n: int, T: int) -> None:
    for look in (
        lambda: made().rate(WHOLE, n, T),
        lambda: made().error(WHOLE, "forced", n, T),
        lambda: made().markdown([(n, T)]),
        lambda: made().rich(n, T),
    ):
        with pytest.raises(SpecError, match=f"n={n}, T={T}"):
            look()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0"), (1.0, "100.00"), (1 - 2**-53, "99.99"), (0.5, "50.00"), (2.5, "250.00")],
)
def test_percentages_do_not_claim_more_than_they_know(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize("share", [1e-3, 9.999e-4, 1e-7, 1e-300])
def test_a_share_above_zero_is_never_printed_as_zero(share: float) -> None:
    assert float(percent(share)) == pytest.approx(100 * share, rel=0.05)


# --------------------------------------------------------------------------------- page, terminal


def lines_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the Markdown table below a line."""
    lines = page.splitlines()
    start = lines.index(heading) + 2
    end = start + lines[start:].index("")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start:end]]


def test_the_page_shows_the_network_for_all_settings() -> None:
    head, _, *rows = lines_of(made(snn_accuracy=90.0).markdown(), "Errors on 1024 images.")
    assert [(int(row[0]), int(row[1])) for row in rows] == SETTINGS
    assert {len(row) for row in rows} == {len(head)}
    cells = dict(zip(head, rows[0], strict=True))
    assert cells["SNN %"] == "90.00"
    assert cells["agree"] == "99.99"
    assert cells["occasional"] == "25.00"
    assert cells["missing"] == "1e-05"
    assert cells["clipping"] == percent(size(1 + 2 + 2).relative)
    assert "ANN %" not in head
    assert "agree ANN" not in head


def test_the_page_shows_layers_for_each_n_at_its_last_t_or_where_asked() -> None:
    page = made().markdown()
    assert [f"n = {n}, T = {T}:" in page for n, T in SETTINGS] == [False, True, False, True]
    page = made().markdown([(1, 2)])
    head, _, *rows = lines_of(page, "Layers, n = 1, T = 2:")
    assert head == [*LAYER_COLUMNS, *SHARED_COLUMNS]
    assert [row[0] for row in rows] == [*LAYERS, WHOLE]
    row = made().error(LAYERS[0], "forced", 1, 2)
    assert rows[0][1:3] == [percent(row.quantization.relative), percent(row.unevenness.relative)]


def test_the_page_holds_mean_rms_and_maximum_of_each_cause_and_view() -> None:
    head, _, *rows = lines_of(made().markdown([(1, 2)]), "Mean / RMS / maximum, n = 1, T = 2:")
    assert head == ["layer", "view", *CAUSES]
    assert [row[:2] for row in rows] == [[la, view] for la in (*LAYERS, WHOLE) for view in VIEWS]
    clipping = made().error(LAYERS[0], "forced", 1, 2).clipping
    assert rows[0][2] == f"{clipping.mean:.3g} / {clipping.rms:.3g} / {clipping.maximum:.3g}"


def test_the_legend_has_a_sentence_for_every_column_and_view() -> None:
    table = made(ann_agreement=0.5, snn_accuracy=1.0, qann_accuracy=2.0, ann_accuracy=3.0)
    page = table.markdown()
    heads = {
        cell for n, T in ((1, 32),) for cell in lines_of(page, f"Layers, n = {n}, T = {T}:")[0]
    }
    heads |= set(lines_of(page, "Errors on 1024 images.")[0])
    assert heads == {*NETWORK_COLUMNS, *LAYER_COLUMNS, *SHARED_COLUMNS}
    assert all(f"- {name}: " in page for name in heads)
    assert all(f"- view {view}: {text}" in page for view, text in VIEWS.items())


def test_a_terminal_of_80_columns_shows_all_of_both_tables() -> None:
    accuracies = {"snn_accuracy": 89.12, "qann_accuracy": 90.0, "ann_accuracy": 91.0}
    table = made(**accuracies)
    text = StringIO()
    for part in table.rich(15, 2):
        Console(file=text, width=80).print(part)
    shown = text.getvalue()
    assert "…" not in shown
    assert "Errors on 1024 images, ANN % 91.00, QANN % 90.00" in shown
    assert "Layers, n = 15, T = 2" in shown
    assert all(layer in shown for layer in (*LAYERS, WHOLE))
    assert shown.count("89.12") == len(SETTINGS)
    assert max(map(len, shown.splitlines())) <= 80


def test_a_terminal_shows_the_last_setting_unless_told() -> None:
    assert [str(part.title) for part in made().rich()][1] == "Layers, n = 15, T = 32"
    assert len(ErrorTable(0, (), (), ()).rich()) == 1


def test_accuracies_that_differ_between_rows_are_not_in_the_title() -> None:
    table = made(qann_accuracy=90.0)
    first = dataclasses.replace(table.logits[0], qann_accuracy=80.0)
    table = dataclasses.replace(table, logits=(first, *table.logits[1:]))
    assert "QANN" not in str(table.rich()[0].title)
