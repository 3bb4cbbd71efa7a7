"""Several runs on one page: from their stored files, without torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from pages import INSPECTION, energy_report
from results import ROW

from mt_convert.errors import CheckpointError, OutputError
from mt_convert.evaluation.energy.account import FLOAT, account
from mt_convert.experiments.comparison.compare import compare
from mt_convert.experiments.comparison.compared_runs import short_names
from mt_convert.report.rows import Row, results_to_json
from mt_convert.system.storage import write_json

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A finished run with rows and, unless it is None, so many events of its neurons."""

    def make(name: str, rows: list[Row], events: float | None = 40.0) -> Path:
        folder = tmp_path / name
        write_json(folder / "results.json", results_to_json(rows))
        if events is not None:
            way = "n = 15, T = 1"
            paid: dict[str, Any] = account({way: (energy_report(events), 1)})
            paid["thresholds"] = {way: 15, "n = 3, T = 2": 3}
            paid["over_time"]["n = 3, T = 2"] = [{"T": 2, "total": 700.0}]
            write_json(folder / "inspect" / "inspection.json", INSPECTION | {"account": paid})
        return folder

    return make


LESS = replace(ROW, n=3, T=2, snn_accuracy=88.4, exact_share=0.25, settling_T=None)
SCRATCH = replace(
    ROW,
    **dict.fromkeys(("qann_accuracy", "agreement", "exact_share", "settling_T"), None),
    **{"snn_accuracy": 93.5, "T": 4, "algorithm": "bptt"},
)


def test_each_run_is_a_line_with_its_networks_energy_and_whether_it_is_beaten(make: Make) -> None:
    dear = make("dear", [ROW, LESS])
    cheap = make("cheap", [replace(ROW, snn_accuracy=90.0, qann_accuracy=90.0)], 10.0)
    scratch = make("scratch", [SCRATCH], None)
    one, two, three = compare([dear, cheap, scratch], dear.parent / "out").rows
    assert (one.name, one.n, one.T, one.exact, one.snn_accuracy) == ("dear", 15, 1, True, 90.87)
    assert one.spiking_nj is not None
    assert two.spiking_nj is not None
    assert one.spiking_nj > two.spiking_nj
    assert one.quantized_nj == two.quantized_nj
    assert one.ratio == one.spiking_nj / one.quantized_nj
    assert (one.unbeaten_in_steps, two.unbeaten_in_steps) == (True, False)
    assert (one.unbeaten_in_energy, two.unbeaten_in_energy) == (True, True)
    assert (three.exact, three.bits, three.spiking_nj) == (False, "W4", None)
    assert three.unbeaten_in_steps
    assert one.low < one.snn_accuracy < one.high


def test_a_network_from_scratch_has_an_energy_beside_the_float_network_alone(make: Make) -> None:
    folder = make("scratch", [SCRATCH], None)
    paid = account({"T = 4": (energy_report(), 1)}, reference=FLOAT)
    write_json(folder / "inspect" / "inspection.json", INSPECTION | {"account": paid})
    converted = make("converted", [ROW])
    out = folder.parent / "out"
    _, one = compare([converted, folder], out).rows
    spiking, ann = paid["networks"][1], paid["networks"][0]
    assert (one.spiking_nj, one.float_nj) == (spiking["total"] / 1000, ann["total"] / 1000)
    assert one.quantized_nj is one.ratio is None
    page = next(out.glob("*.html")).read_text()
    assert "scratch, float network" in page
    assert "scratch, quantized" not in page


def test_the_page_has_both_pictures_and_says_what_is_not_there(make: Make, tmp_path: Path) -> None:
    folders = [make("a", [ROW, LESS]), make("b", [SCRATCH], None)]
    (folders[0] / "report.html").write_text("its own page")
    comparison = compare(folders, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="chart wide"') == 2
    assert "1 of 2 spiking networks equal their quantized networks" in page
    assert "Energy was not counted for b" in page
    assert 'href="../a/report.html"' in page
    assert "../b/report.html" not in page
    assert "a, n = 3, T = 2: 88.40 % at 0.7" in page
    assert comparison.plain("csv") == (tmp_path / "out" / "comparison.csv").read_text()
    lines = list(csv.DictReader(io.StringIO(comparison.plain("csv"))))
    stored = json.loads(comparison.plain("json"))["runs"]
    assert [line["name"] for line in lines] == [row["name"] for row in stored] == ["a", "b"]


def test_other_images_have_pictures_of_their_own_and_are_never_ranked_together(
    make: Make, tmp_path: Path
) -> None:
    worse = replace(ROW, dataset="digits", images=360, snn_accuracy=50.0)
    comparison = compare([make("a", [ROW]), make("b", [worse], 80.0)], tmp_path / "out")
    assert all(row.unbeaten_in_steps and row.unbeaten_in_energy for row in comparison.rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="chart wide"') == 4
    assert "Not all are on the same images" in page
    assert 'id="best-2"' in page


def test_a_network_that_was_trained_on_is_a_line_of_its_own_without_the_energy(
    make: Make, tmp_path: Path
) -> None:
    tuned = replace(LESS, algorithm="dsr", snn_accuracy=90.0)
    rows = compare([make("a", [ROW, tuned])], tmp_path / "out").rows
    assert [row.name for row in rows] == ["a: as converted", "a: trained by dsr"]
    assert rows[0].spiking_nj is not None
    assert rows[1].spiking_nj is None


def test_all_folders_that_hold_no_run_are_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 folders") as raised:
        compare([make("a", [ROW]), tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    assert [fault.where for fault in raised.value.faults] == [
        str(tmp_path / "x"),
        str(tmp_path / "y"),
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [[], {"account": {}}, {"account": {"networks": [1, 2, 3]}}])
def test_a_damaged_look_into_a_network_is_named(make: Make, tmp_path: Path, damage: object) -> None:
    folder = make("a", [ROW])
    write_json(folder / "inspect" / "inspection.json", damage)
    with pytest.raises(CheckpointError, match=r"inspection\.json is damaged"):
        compare([folder, make("b", [ROW])], tmp_path / "out")


def test_the_page_of_a_run_is_not_written_over(make: Make) -> None:
    folder = make("a", [ROW])
    (folder / "report.html").write_text("its own page")
    with pytest.raises(OutputError, match="page of something else"):
        compare([folder, make("b", [ROW])], folder)
    assert (folder / "report.html").read_text() == "its own page"


def test_folders_of_one_name_are_told_apart() -> None:
    assert short_names([Path("a/x"), Path("b/x"), Path("y/")]) == ["a/x", "b/x", "y"]


def test_the_command_prints_lines_of_80_columns_or_data_and_takes_out_for_several_alone(
    make: Make, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make("a_name_that_is_quite_long_for_a_table", [ROW])
    two = make("b", [replace(ROW, control_accuracy=91.4)])
    out = one.parent / "out"
    words = ("show", str(one), str(two), "--out", str(out))
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert f"page: {out / 'report.html'}" in done.stdout
    assert "control %" in done.stdout
    assert command(*words, "--csv").stdout == (out / "comparison.csv").read_text()
    addresses: list[str] = []
    monkeypatch.setattr("typer.launch", addresses.append)
    command(*words, "--open")
    assert addresses == [(out / "report.html").as_uri()]
    alone = command("show", str(one), "--out", str(out))
    assert alone.returncode == 2
    assert "name several" in alone.stderr
