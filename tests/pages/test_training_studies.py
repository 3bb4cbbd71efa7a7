"""The studies of training: pages are made from rows, and say what the rows say."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from mt_convert.experiments.recipes.from_scratch import SpikingRecipe, load
from mt_convert.report.rows import Row, results_from_json
from mt_convert.system.storage import read_json

EVAL = ROOT / "eval"
ROW = Row(
    *("resnet20_cifar", "JPEG CIFAR-10", 10000, "once", "parallel", True, 1, 2),
    *(88.5, 81.7, 61.7, 0.7, 0.0, 1.0, "uniform", 3, 2, False, None, 0),
)


def study(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVAL / name))
    sys.modules.pop("regenerate", None)
    return import_module("regenerate")


def test_fine_tuning_is_told_as_the_mean_of_seeds_and_a_share_of_the_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = study("finetune", monkeypatch)
    ends = [
        replace(ROW, snn_accuracy=at, algorithm="dsr", epochs=2, seconds_per_epoch=60.0, seed=seed)
        for seed, at in enumerate((75.0, 78.4))
    ]
    (line,) = found.sentences([ROW, *ends])
    assert "n = 1, T = 2, dsr: 61.70 % as converted, 76.70 % fine-tuned" in line
    assert "mean of 2 seeds, QANN 81.70 %), 75% of the gap; 60 seconds an epoch" in line
    page = found.text("# Head\n", [ROW, *ends], ["bptt_n1_t2_seed0"])
    assert "Not made yet: bptt_n1_t2_seed0." in page
    assert page.count("| dsr |") == 2
    names = [item.name for item in found.trainings()]
    assert len(set(names)) == len(names) == 18


@pytest.mark.parametrize("name", ["finetune", "from_scratch"])
def test_stored_pages_are_made_from_stored_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(name, monkeypatch)
    rows = results_from_json(read_json(EVAL / name / "results.json"))
    page = (EVAL / name / "README.md").read_text()
    absent = re.search(r"^Not made yet: (.*)\.$", page, re.MULTILINE)
    missing = absent[1].split(", ") if absent else []
    assert page == found.text((EVAL / name / "head.md").read_text(), rows, missing)
    wanted = [item.name for item in found.trainings()]
    assert set(missing) <= set(wanted)
    trained = [row for row in rows if row.algorithm != "none"]
    assert len(trained) == len(wanted) - len(missing)


def test_at_the_fewest_steps_fine_tuning_brings_back_more_than_half() -> None:
    rows = results_from_json(read_json(EVAL / "finetune" / "results.json"))
    here = [row for row in rows if (row.n, row.T) == (1, 2)]
    (before,) = {row.snn_accuracy for row in here if row.algorithm == "none"}
    best = max(row.snn_accuracy for row in here if row.algorithm == "dsr")
    assert here[0].qann_accuracy is not None
    assert best - before > (here[0].qann_accuracy - before) / 2


def test_more_thresholds_give_more_at_one_step() -> None:
    rows = results_from_json(read_json(EVAL / "from_scratch" / "results.json"))
    for dataset in ("digits", "JPEG CIFAR-10"):
        here = [row for row in rows if (row.dataset, row.T) == (dataset, 1)]
        single = max(row.snn_accuracy for row in here if row.n == 1)
        assert min(row.snn_accuracy for row in here if row.n == 4) > single


def test_the_page_of_training_costs_is_made_from_the_stored_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = study("training_cost", monkeypatch)
    stored = read_json(EVAL / "training_cost" / "results.json")
    assert stored["schema"] == found.SCHEMA
    costs = [found.Cost(**row) for row in stored["rows"]]
    head = (EVAL / "training_cost" / "head.md").read_text()
    assert (EVAL / "training_cost" / "README.md").read_text() == found.text(
        head, costs, stored["linrec"], stored["compiled"]
    )
    held = {(row.algorithm, row.T): row.saved_mib for row in costs}
    for name in ("ottt_a", "dsr", "tandem"):
        assert held[name, 8] < 1.02 * held[name, 2]
    for steps in found.SHORT["bptt"]:
        assert held["bptt", steps] <= steps * held["qann", 1]


@pytest.mark.slow
def test_training_from_scratch_is_compared_at_as_many_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = study("from_scratch", monkeypatch)
    base = replace(ROW, dataset="digits", method="mt_plif", n=1, qann_accuracy=None)
    at = {("parallel", 1, 1): (80.0, 82.0), ("parallel", 1, 4): (90.0,), ("cascade", 4, 1): (94.0,)}
    rows = [
        replace(base, mode=mode, n=n, T=T, snn_accuracy=each, seed=seed)
        for (mode, n, T), seeds in at.items()
        for seed, each in enumerate(seeds)
    ]
    page = found.text("# Head\n", rows, ["digits_lif_single_t1_seed0"])
    assert "in cascade (15 levels) against one: +13.00 at T = 1 points" in page
    assert (
        "in cascade (15 levels) at T = 1 (94.00 %, 1.00 spikes): above one threshold at T = 4 "
        "(90.00 %, 1.00 spikes)"
    ) in page
    assert "| plif | one threshold | 81.00 (80.00 … 82.00); 1.00 | 90.00; 1.00 |" in page
    assert "| lif | one threshold | 81.00 (80.00 … 82.00); 1.00 | – |" in found.text("", rows, [])
    assert "Not made yet: digits_lif_single_t1_seed0." in page
    found.picture(rows, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes()[1:4] == b"PNG"
    items = list(found.trainings())
    assert not any(item.neuron == "lif" and item.T == 1 for item in items)
    assert len({item.name for item in items}) == len(items) == (2 + 1) * 15
    for item in items:  # every cell is a recipe that is allowed
        recipe = load(found.RECIPES[item.data], item.words())
        assert isinstance(recipe, SpikingRecipe)
        assert (recipe.spiking.neuron, recipe.spiking.time_steps) == (item.neuron, item.T)
        assert (str(recipe.spiking.mode), recipe.spiking.n) == item.way_of
