"""The page of a sweep for a browser, from stored rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from paths import ROOT

from mt_convert.experiments.coverage.browser_page import html, write_html
from mt_convert.experiments.coverage.rows import CoverageRow, Table, read_table

STORED = read_table(ROOT / "eval" / "coverage" / "results.json")


def test_every_architecture_and_family_is_a_line_and_failures_stand_by_themselves(
    tmp_path: Path,
) -> None:
    text = write_html(STORED, tmp_path, "mt-convert coverage --all").read_text()
    assert all(text.count(f">{row.architecture}</td>") >= 1 for row in STORED.rows)
    assert all(f">{family}</td>" in text for family in STORED.families)
    (failed,) = [row for row in STORED.rows if not row.converted]
    assert f"<li>{failed.architecture} ({failed.family}): {failed.error}</li>" in text
    assert "97 of 98 architectures convert, exact at T = 1" in text
    assert 'id="command">mt-convert coverage --all<' in text
    assert len(text) < 500_000


def test_all_of_the_registry_fits_in_two_megabytes() -> None:
    rows = tuple(
        dataclasses.replace(row, architecture=f"{row.architecture}_{k}")
        for row in STORED.rows
        for k in range(14)
    )
    assert len(rows) >= 1371
    assert len(html(dataclasses.replace(STORED, rows=rows), Path("nowhere")).encode()) < 2_000_000


def test_what_was_not_tried_or_failed_is_left_out_or_said() -> None:
    done = CoverageRow("vgg11", "vgg", converted=True, exact_t1=True, spike_fed_mac_share=1.0)
    text = html(Table({}, {}, (done,)), Path("nowhere"))
    assert "✓ 1 of 1 architectures convert" in text
    assert 'id="failed-list"' not in text
    assert 'id="failed">none<' in text
    assert "0 of 0 architectures" in html(Table({}, {}, ()), Path("nowhere"))
