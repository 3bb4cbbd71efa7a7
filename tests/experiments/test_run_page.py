"""The page of a run from its stored files, and `show` without torch."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Command
from paths import ROOT
from results import ROW
from rich.console import Console

from mt_convert.cli import recipes
from mt_convert.errors import CheckpointError
from mt_convert.experiments.bench.rows import Benchmark, BenchRow
from mt_convert.experiments.run_page import write_page
from mt_convert.experiments.show import plain, show
from mt_convert.report.records import csv_text
from mt_convert.report.rows import Row, results_to_json
from mt_convert.system.storage import write_json

VERDICT = {
    **{"exact_t1": True, "settling_t": 6, "thresholds": 4, "time_steps": 32, "images": 32},
    **{"neurons": 4096, "adversarial": 540, "differs": []},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run as earlier versions left it, without a look into its network."""
    write_json(tmp_path / "results.json", results_to_json([ROW]))
    report = {"verdict": VERDICT, "neurons": [], "weighted": [], "analog": [], "warnings": []}
    write_json(tmp_path / "convert" / "report.json", {"report": report})
    (tmp_path / "recipe.yaml").write_text("name: r20\nseed: 0\n")
    return tmp_path


def test_the_page_of_a_run_of_before_is_made_with_what_it_stored(folder: Path) -> None:
    page = write_page(folder).read_text()
    assert "Exact at T = 1" in page
    assert "runs/r20" in page
    assert 'id="spikes"' not in page
    assert (folder / "results.csv").is_file()


def test_the_same_files_give_the_same_page(folder: Path) -> None:
    first = write_page(folder).read_bytes()
    assert write_page(folder).read_bytes() == first


def test_times_that_lie_in_a_run_stand_on_its_page(folder: Path) -> None:
    assert 'id="speed"' not in write_page(folder).read_text()
    row = BenchRow(
        *("r20", 32, 1, 15, "integer_native", 152.5, 2.0, None, True, 150.0, 160.0),
        rounds=5,
    )
    write_json(folder / "bench" / "results.json", Benchmark((row,)).to_json())
    page = write_page(folder).read_text()
    assert 'id="speed"' in page
    assert "integer_native" in page.split('id="speed"')[1]
    write_json(folder / "bench" / "results.json", {"schema": "of something else"})
    assert 'id="speed"' not in write_page(folder).read_text()


def test_a_folder_without_a_finished_run_gets_no_page(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished run"):
        write_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("versions.json", []),
        ("versions.json", {"packages": ["torch"]}),
        ("convert/report.json", []),
        ("convert/report.json", {"report": []}),
    ],
)
def test_the_damaged_file_is_named_and_no_other(folder: Path, name: str, damage: object) -> None:
    write_json(folder / name, damage)
    with pytest.raises(CheckpointError, match=f"{name.replace('.', '[.]')} is damaged") as raised:
        write_page(folder)
    assert "inspection" not in str(raised.value)


def test_a_damaged_log_is_named(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train" / "log.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(CheckpointError, match=r"log\.jsonl is damaged"):
        write_page(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("damage", [{}, {"nodes": [{}]}, {"layers": [{"name": "a"}]}, []])
def test_a_damaged_look_into_the_network_is_one_message(folder: Path, damage: object) -> None:
    write_json(folder / "inspect" / "inspection.json", damage)
    if damage in ({}, []):  # nothing was looked at
        assert write_page(folder).is_file()
        return
    with pytest.raises(CheckpointError, match=r"inspection\.json is damaged"):
        write_page(folder)
    assert not (folder / "report.html").exists()


def test_rows_as_csv_have_every_column_and_every_number() -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text(Row, [ROW])))
    assert list(row) == Row.fields()
    assert float(row["spikes_per_neuron"]) == ROW.spikes_per_neuron


def test_rows_as_json_are_those_that_are_stored(folder: Path) -> None:
    assert json.loads(plain(folder, "json")) == json.loads((folder / "results.json").read_text())


def test_show_takes_one_form_and_prints_nothing_else(folder: Path, command: Command) -> None:
    assert command("show", str(folder), "--csv").stdout == plain(folder, "csv")
    done = command("show", str(folder), "--csv", "--json")
    assert done.returncode == 2
    assert "one of them" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [("ls",), ("show", "."), ("show", ".", "--json")])
def test_show_and_ls_do_not_wait_for_torch(folder: Path, words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom mt_convert.cli import app\n"
        f"app({list(words)!r}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("folder", "said"),
    [("coverage", "architectures of timm's registry"), ("benchmark", "integer_native")],
)
def test_show_tells_tables_of_other_rows_too(command: Command, folder: str, said: str) -> None:
    stored = ROOT / "eval" / folder
    done = command("show", str(stored))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    rows = json.loads((stored / "results.json").read_text())["rows"]
    assert json.loads(plain(stored, "json"))["rows"] == rows
    assert len(list(csv.DictReader(io.StringIO(plain(stored, "csv"))))) == len(rows)


def test_the_page_of_a_fine_tuning_tells_before_and_after(tmp_path: Path) -> None:
    before = replace(ROW, n=3, T=2, snn_accuracy=88.4, exact_share=0.25)
    after = replace(before, algorithm="bptt", epochs=2, snn_accuracy=90.1)
    write_json(tmp_path / "results.json", results_to_json([before, after]))
    write_json(tmp_path / "versions.json", {"command": "mt-convert finetune runs/r20"})
    (tmp_path / "recipe.yaml").write_text("name: r20\n")
    (tmp_path / "learn").mkdir()
    log = [{"epoch": k, "train_loss": 1 / k, "validation_accuracy": 88.0 + k} for k in (1, 2)]
    (tmp_path / "learn" / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    page = write_page(tmp_path).read_text()
    assert "bptt over 2 epochs: 88.40 % to 90.10 % of 10,000 test images" in page
    assert 'id="accuracy-spiking"' in page
    assert 'id="accuracy-fine-tuned-bptt"' in page
    assert "fine-tuning: validation accuracy, %" in page
    assert 'id="command">mt-convert finetune runs/r20<' in page
    console = Console(record=True, width=80)
    show(tmp_path, console)
    assert "+1.70 points, 69 % of what conversion had taken" in console.export_text()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_ls_cuts_nothing_in_a_terminal_and_breaks_between_words(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr(sys, "stdout", Terminal())
    text = ("some words that say it " * 9).strip()
    lines = recipes._entry("a_name", text, 32).splitlines()
    assert len(lines) > 1
    assert all(len(line) <= columns for line in lines)
    assert " ".join(" ".join(lines).split()) == f"a_name {text}"


def test_what_ls_lists_is_given_as_json_and_csv(command: Command) -> None:
    names = json.loads(command("ls", "--json").stdout)
    assert "digits" in names["recipes"]
    rows = list(csv.DictReader(io.StringIO(command("ls", "--csv").stdout)))
    assert {row["name"] for row in rows} == {*names["recipes"], *names["networks"]}


def test_show_open_names_the_page_and_opens_it(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr("typer.launch", addresses.append)
    done = command("show", str(folder), "--open")
    assert addresses == [(folder / "report.html").as_uri()]
    assert str(folder / "report.html") in done.stdout
