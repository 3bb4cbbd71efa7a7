"""The study of ladders: measured once, kept, and a page that says what is stored."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from mt_convert.experiments.recipes.conversion import load_recipe
from mt_convert.experiments.run import run
from mt_convert.system.storage import read_json

FOLDER = ROOT / "eval" / "ladders"


@pytest.mark.long
def test_a_run_is_measured_once_and_digits_are_exact_in_as_many_steps_as_they_take(
    regenerate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run(load_recipe("digits", smoke=True), tmp_path / "digits", resume=False)
    words = ["--runs", str(folder), "--parts", str(tmp_path / "parts"), "--out", str(tmp_path)]
    regenerate.main(words)
    (network,) = read_json(tmp_path / "results.json")["networks"]
    rows = [row for row in regenerate.rows_of(network) if row.ladder == "radix"]
    assert [(row.n, row.T, row.exact_share) for row in rows] == [(1, 4, 1), (3, 2, 1), (15, 1, 1)]
    for item in network["digits"]:
        ends = [point["accuracy"] for point in item["curves"] if point["digits"] == item["T"]]
        assert ends == [rows[0].qann_accuracy] * 2
        assert item["latency"] == item["T"] * (item["depth"] + 1)
    assert (tmp_path / "README.md").read_text() == regenerate.page([network])
    assert (tmp_path / "ladders.png").stat().st_size > 10_000

    def never(*_: object) -> None:
        raise AssertionError("measured twice")

    for name in ("curves", "times", "membranes"):
        monkeypatch.setattr(regenerate, name, never)
    before = (tmp_path / "README.md").read_text()
    regenerate.main(words)
    assert (tmp_path / "README.md").read_text() == before


def test_a_network_is_stored_beside_the_others_as_soon_as_it_is_measured(
    regenerate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regenerate, "draw", lambda networks, path: None)
    monkeypatch.setattr(regenerate, "page", lambda networks: f"{len(networks)}")
    counts = iter(range(9))

    def measure(word: str, *_: object) -> dict[str, object]:
        if word == "broken":
            raise KeyboardInterrupt
        return {"name": word, "count": next(counts)}

    monkeypatch.setattr(regenerate, "measure", measure)
    regenerate.main(["--runs", "w4", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        regenerate.main(["--runs", "w2", "broken", "--out", str(tmp_path)])
    regenerate.main(["--runs", "w4", "--out", str(tmp_path)])
    found = read_json(tmp_path / "results.json")["networks"]
    assert [(item["name"], item["count"]) for item in found] == [("w4", 2), ("w2", 1)]
    assert (tmp_path / "README.md").read_text() == "2"


def test_the_page_is_made_from_the_stored_rows(regenerate: ModuleType) -> None:
    stored = read_json(FOLDER / "results.json")
    assert stored["schema"] == regenerate.SCHEMA
    assert (FOLDER / "README.md").read_text() == regenerate.page(stored["networks"])


def test_digits_are_exact_in_as_many_steps_as_bits_and_cost_no_more_time(
    regenerate: ModuleType,
) -> None:
    networks = read_json(FOLDER / "results.json")["networks"]
    assert {item["levels"] for item in networks} == {3, 15}
    for network in networks:
        rows = [row for row in regenerate.rows_of(network) if row.ladder == "radix"]
        due = {3: [(1, 2), (3, 1)], 15: [(1, 4), (3, 2), (15, 1)]}[network["levels"]]
        assert [(row.n, row.T) for row in rows] == due
        for row in rows:
            assert row.images == 10_000
            assert row.exact_share == 1
            assert row.snn_accuracy == row.qann_accuracy
        for item in network["digits"]:
            assert item["ms"] <= 1.1 * item["ms_one_step"]  # measured in turns, in one run
