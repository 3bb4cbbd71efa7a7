"""Fine-tuning by recipe and by command: the same numbers, beside the conversion they start from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import mt_convert as mt
from mt_convert.data import batches, images, open_data
from mt_convert.errors import CheckpointError, RecipeError, SpecError
from mt_convert.evaluation.settings import Setting
from mt_convert.experiments import finetune
from mt_convert.experiments import run as experiment
from mt_convert.experiments.recipes.conversion import load_recipe
from mt_convert.experiments.recipes.finetune_job import FinetuneJob
from mt_convert.neurons.ladder import Uniform
from mt_convert.report.rows import results_from_json
from mt_convert.spiking.simulate import simulate
from mt_convert.training.gradients import ALGORITHMS, SURROGATES
from mt_convert.training.spec import TrainSpec

FEW = (
    *("evaluate.thresholds=[15]", "evaluate.time_steps=[1]", "evaluate.modes=[parallel]"),
    "evaluate.iso_level=false",
)
BLOCK = ("finetune={thresholds: 3, time_steps: 2, train: {epochs: 1, batch_size: 16, lr: 0.01}}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without fine-tuning."""
    out = tmp_path_factory.mktemp("run") / "out"
    return experiment.run(load_recipe("digits", FEW, smoke=True), out, resume=False)


@pytest.mark.slow
def test_the_command_fine_tunes_a_run_and_tells_before_and_after(
    finished: Path, tmp_path: Path
) -> None:
    out = finetune.run(str(finished), BLOCK, tmp_path / "tuned")
    rows = results_from_json(json.loads((out / "results.json").read_text()))
    assert [(row.algorithm, row.epochs, row.n, row.T) for row in rows] == [
        ("none", None, 3, 2),
        ("bptt", 1, 3, 2),
    ]
    assert rows[1].seconds_per_epoch is not None
    recipe = load_recipe(out / "recipe.yaml")
    splits = open_data(recipe.data)
    network = mt.load(out / "network")
    assert isinstance(network, mt.spiking.SpikingModel)
    right = 0
    for shown, labels in batches(splits.test, 16):
        answers = simulate(network, shown, time_steps=2).logits[-1].argmax(1)
        right += int((answers == labels).sum())
    assert rows[1].snn_accuracy == pytest.approx(100 * right / 16)
    page = (out / "README.md").read_text()
    assert "bptt over 1 epoch:" in page
    assert "| trained by |" in page
    page = (out / "report.html").read_text()
    assert f"mt-convert finetune {finished}" in page
    assert 'id="accuracy-fine-tuned-bptt"' in page
    for name in ("spikes", "energy", "layers"):
        assert f'<section id="{name}"' in page
    looked = json.loads((out / "inspect" / "inspection.json").read_text())
    assert looked["account"]["way"] == "n = 3, T = 2"
    first = simulate(network, images(splits.test, 1), time_steps=2, record=True)
    assert looked["example"]["classes"] == first.logits[:, 0].argmax(1).tolist()
    shown = simulate(network, images(splits.test, looked["images"]), time_steps=2)
    assert [row["rate"] for row in looked["layers"]] == list(shown.firing_rates.values())
    console = Console(record=True, width=100)
    finetune.show(out, console)
    assert "of 16 test images" in console.export_text()
    again = finetune.run(str(finished), BLOCK, tmp_path / "tuned")
    assert results_from_json(json.loads((again / "results.json").read_text())) == rows
    more = (*BLOCK, "finetune.train.lr=0.5")
    with pytest.raises(CheckpointError, match="other settings"):
        finetune.run(str(finished), more, tmp_path / "tuned")


@pytest.mark.long
def test_a_recipe_with_the_block_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    recipe = load_recipe("digits", (*FEW, *BLOCK), smoke=True)
    experiment.run(recipe, out, resume=False, overwrite=True)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log if line["stage"] == "evaluate"][-1] == "kept"
    rows = results_from_json(json.loads((out / "results.json").read_text()))
    assert [row.algorithm for row in rows] == ["none", "none", "bptt"]
    tuned = finetune.run(str(finished), BLOCK, tmp_path / "tuned")
    alone = results_from_json(json.loads((tuned / "results.json").read_text()))
    assert [row.snn_accuracy for row in alone] == [row.snn_accuracy for row in rows[1:]]
    assert "bptt" in (out / "report" / "report.md").read_text()


@pytest.mark.slow
def test_without_a_block_the_run_s_files_are_what_they_were(finished: Path) -> None:
    assert not (finished / "finetune").exists()
    stored, rows = (
        json.loads((finished / name).read_text()) for name in ("results.json", "evaluate/rows.json")
    )
    assert stored["rows"] == rows["rows"]
    assert "finetune" not in stored


def test_what_training_does_not_name_is_the_fine_tuning_s_own_and_the_recipe_s_seed() -> None:
    for words in (["finetune={}"], ["finetune.train.epochs=5"], ["finetune.algorithm=dsr"]):
        block = load_recipe("digits", [*words, "seed=7"]).finetune
        assert block is not None
        assert (block.train.lr, block.train.weight_decay, block.train.seed) == (0.005, 0.0, 7)
        assert block.train.epochs == (5 if "epochs" in words[0] else 2)


def test_what_an_algorithm_would_pass_over_is_refused() -> None:
    setting, train = Setting(Uniform(1), (2,)), TrainSpec(epochs=1)
    wrong = {
        "surrogate": ("dsr", "atan", ("weights",)),
        "leave leaks out": ("ottt_a", None, ("weights", "leaks")),
        "learns  thresholds": ("tandem", None, ("weights", "thresholds")),
        "learns  potentials": ("tandem", None, ("potentials",)),
    }
    for hint, (algorithm, surrogate, learns) in wrong.items():
        with pytest.raises(SpecError, match="would pass over") as caught:
            FinetuneJob(setting, algorithm, train, surrogate, learns)
        assert hint in str(caught.value)
    with pytest.raises(RecipeError, match="leave them out"):
        load_recipe("digits", ["finetune.algorithm=tandem"])


def test_every_name_of_an_algorithm_and_a_surrogate_is_allowed() -> None:
    setting, train = Setting(Uniform(1), (2,)), TrainSpec(epochs=1)
    for algorithm in ALGORITHMS:
        job = FinetuneJob(setting, algorithm, train, learns=("weights",))
        assert job.how().algorithm == ALGORITHMS[algorithm]
    for surrogate in SURROGATES:
        how = FinetuneJob(setting, "bptt", train, surrogate, ("leaks",)).how()
        assert how.surrogate == SURROGATES[surrogate]
        assert how.learns.leaks
        assert not how.learns.weights


def test_wrong_values_are_told_at_once(tmp_path: Path) -> None:
    setting = Setting(Uniform(1), (1, 2))
    with pytest.raises(SpecError) as caught:
        FinetuneJob(setting, "bppt", TrainSpec(epochs=1), "step", ("everything",), "me")
    assert [fault.where for fault in caught.value.faults] == [
        *("algorithm", "surrogate", "teacher", "learns.0", "time_steps")
    ]
    with pytest.raises(RecipeError, match="mt-convert run RECIPE --out"):
        finetune.run(str(tmp_path), (), None)
    with pytest.raises(RecipeError) as faults:
        load_recipe("digits", ["finetune={algorithm: sgd, steps: 2, learns: [all]}"])
    assert len(faults.value.faults) == 3
