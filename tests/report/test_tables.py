"""Pages and tables made from stored results alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from results import ROW
from rich.console import Console
from rich.table import Table

from mt_convert.report.columns import COLUMNS, LEGEND, legend
from mt_convert.report.columns import columns as shown_columns
from mt_convert.report.rows import Row
from mt_convert.report.tables import (
    PAGES_ALONE,
    conversion_table,
    markdown_page,
    rich_table,
    summary,
    title,
)

ROWS = [
    ROW,
    replace(ROW, n=1, T=2, snn_accuracy=88.4, agreement=0.95, exact_share=0.25, settling_T=9),
    replace(ROW, presentation="every_step", signed=False, settling_T=None, exact_share=0.99999),
]
VERDICT: dict[str, Any] = {"exact_t1": True, "images": 32, "neurons": 4096, "differs": []}
REPORT: dict[str, Any] = {
    "verdict": VERDICT,
    "neurons": [
        {
            "name": "layer1.0.act1",
            "ladder": "Uniform(n=15)",
            "firing": "parallel",
            "signed": False,
            "levels": [0, 15],
            "scale": 0.0123456789,
        },
        {
            "name": "layer1.0.act2",
            "ladder": "Uniform(n=7)",
            "firing": "cascade",
            "signed": True,
            "levels": [-7, 7],
            "scale": 0.5,
        },
    ],
    "weighted": [
        {"name": "conv1", "layer": "Conv2d", "spike_fed": False, "fed_by": ["input_quant"]},
        {"name": "fc", "layer": "Linear", "spike_fed": True, "fed_by": ["layer1.0.act2"]},
    ],
    "analog": [
        {"name": "conv1", "operator": "Conv2d", "reason": "fed by the encoded image"},
        {"name": "maxpool", "operator": "max_pool2d", "reason": "by temporal difference"},
    ],
}


def shown(table: Table, width: int = 80) -> str:
    """A table as a terminal of this width prints it."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def columns(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def test_the_sentence_says_what_was_converted_that_it_is_exact_and_where_it_lies() -> None:
    sentence = summary(ROWS, REPORT, "runs/r20")
    assert sentence.startswith("resnet20_cifar became 2 layers of multi-threshold neurons")
    assert "1 of 2 weighted layers are fed by spikes" in sentence
    assert "equals its quantized network bit for bit at T = 1" in sentence
    assert "32 images, 4096 activations" in sentence
    assert sentence.endswith("all artefacts are in runs/r20")


def test_the_sentence_names_the_layers_that_are_not_exact() -> None:
    verdict = {**VERDICT, "exact_t1": False, "differs": ["layer1.0.act2", "logits"]}
    sentence = summary(ROWS, {**REPORT, "verdict": verdict}, "here")
    assert "DIFFERS from its quantized network at T = 1 in layer1.0.act2, logits" in sentence
    assert "equals" not in sentence


def test_the_page_holds_table_sentence_neurons_and_what_stays_analog() -> None:
    page = markdown_page(ROWS, "It is exact", REPORT)
    lines = page.splitlines()
    assert lines[0] == ("# resnet20_cifar, cifar10_jpeg, 10,000 test images, W4A4 (L = 15), seed 0")
    assert "It is exact." in lines
    assert LEGEND + "." in lines
    assert sum("| 91.23 | 90.87 |" in line for line in lines) == len(ROWS)
    assert "| layer1.0.act1 | Uniform(n=15) | parallel | no | 0 … 15 | 0.0123457 |" in lines
    assert "| layer1.0.act2 | Uniform(n=7) | cascade | yes | -7 … 7 | 0.5 |" in lines
    assert "| conv1 | Conv2d | no | input_quant |" in lines
    assert "| fc | Linear | yes | layer1.0.act2 |" in lines
    analog = lines[lines.index("## Analog") :]
    assert "- conv1 (Conv2d): fed by the encoded image" in analog
    assert "- maxpool (max_pool2d): by temporal difference" in analog


def test_the_legend_of_a_terminal_explains_no_column_that_it_has_no_room_for() -> None:
    rows = [replace(row, packets_per_neuron=1.5) for row in ROWS]
    headings = {str(column.header).removesuffix(" %") for column in rich_table(rows).columns}
    said = {part.split(":")[0] for part in legend(rows, left_out=PAGES_ALONE).split("; ")}
    assert {"agree", "exact", "spikes"} <= said <= headings
    assert "packets" in legend(rows)


def test_a_page_with_nothing_analog_says_so() -> None:
    page = markdown_page(ROWS, "It is exact", {**REPORT, "analog": []})
    assert page.split("## Analog")[1].strip() == "Nothing."


def test_the_terminal_table_holds_every_number_in_80_columns() -> None:
    text = shown(rich_table(ROWS))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for number in ("91.23", "90.87", "88.40", "95.00", "25.00", "99.99"):
        assert number in text


def test_the_ann_accuracy_stands_in_every_table() -> None:
    fewer = replace(ROWS[1], ann_accuracy=70.55)
    for rows in (ROWS, ROWS[:1], [*ROWS, fewer]):
        text = shown(rich_table(rows))
        assert "ANN %" in text
        assert "91.23" in text
    assert "70.55" in shown(rich_table([*ROWS, fewer]))


def test_what_all_rows_share_stands_in_the_title_and_the_rest_in_columns() -> None:
    table = rich_table(ROWS)
    assert "ladder uniform, mode parallel" in str(table.title)
    assert columns(table) == [
        *("presented", "signed", "n", "T", "SNN %", "agree %", "exact %", "spikes", "settles")
    ]
    mixed = rich_table([ROW, replace(ROW, ladder="binary", mode="cascade")])
    assert {"ladder", "mode"} <= set(columns(mixed))
    assert "presented" not in columns(mixed)


def test_a_whole_window_row_is_not_said_to_be_like_the_others() -> None:
    table = rich_table([ROW, replace(ROW, whole_window=True)])
    assert "once, whole window" in shown(table)


def test_no_number_is_lost_between_title_and_columns() -> None:
    for rows in (ROWS, ROWS[:1], [ROW, replace(ROW, whole_window=True)]):
        table = rich_table(rows)
        for heading in (COLUMNS[name] for name in shown_columns(rows)):
            assert heading in columns(table) or f"{heading} " in str(table.title)


def test_only_exact_rows_are_green() -> None:
    table = rich_table(ROWS)
    assert [row.style for row in table.rows] == ["green", None, None]


@pytest.mark.parametrize(("levels", "bits"), [(1, 1), (3, 2), (7, 3), (15, 4), (255, 8)])
def test_the_title_names_bits_and_levels(levels: int, bits: int) -> None:
    row: Row = replace(ROW, levels=levels, weight_bits=3)
    assert f"W3A{bits} (L = {levels})" in title([row])


def test_tables_of_no_rows_are_empty_and_not_an_error() -> None:
    assert title([]) == "no rows"
    assert "no rows" in shown(rich_table([]))


def test_the_conversion_report_on_a_terminal_shows_all_three_lists() -> None:
    neurons, weighted, analog = (shown(table, 120) for table in conversion_table(REPORT))
    assert "layer1.0.act1" in neurons
    assert "-7 … 7" in neurons
    assert "input_quant" in weighted
    assert "by temporal difference" in analog
