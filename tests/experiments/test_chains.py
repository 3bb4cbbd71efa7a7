"""Chains of verbs in one recipe, and what they leave as subjects of the other commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_recipes import COMMON, SPIKING

import mt_convert as mt
from mt_convert.data import images, open_data
from mt_convert.errors import CheckpointError, RecipeError, SpecError
from mt_convert.evaluation.evaluate import convert_for
from mt_convert.experiments.bench.network import open_network
from mt_convert.experiments.eval_table import EvalOptions
from mt_convert.experiments.eval_table import run as run_eval
from mt_convert.experiments.finetune import _name
from mt_convert.experiments.finetune import run as run_finetune
from mt_convert.experiments.recipes.conversion import load_recipe, load_stored
from mt_convert.experiments.recipes.finetune_job import FinetuneBlock
from mt_convert.experiments.recipes.from_scratch import load
from mt_convert.experiments.run import run
from mt_convert.experiments.subjects import run_subject
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.neurons.ladder import Firing
from mt_convert.report.rows import Row, results_from_json
from mt_convert.spiking.simulate import simulate
from mt_convert.system.storage import read_json
from mt_convert.training.from_scratch.network import ScratchNetwork
from mt_convert.training.spec import TrainSpec

CHAIN = """
quantize: {act_bits: 2}
evaluate: {thresholds: [3], time_steps: [1], batch_size: 8, iso_level: false}
calibrate: {calibration: mse+membrane_mean, presentation: every_step, time_steps: 4, signed: false}
finetune: {learns: [weights], train: {epochs: 1, batch_size: 8}}
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that quantizes, converts, calibrates and fine-tunes."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "chain.yaml").write_text(COMMON + CHAIN)
    return run(load_recipe(folder / "chain.yaml"), folder / "run", resume=False)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network trained from scratch."""
    folder = tmp_path_factory.mktemp("scratch")
    (folder / "scratch.yaml").write_text(COMMON + SPIKING)
    return run(load(folder / "scratch.yaml"), folder / "run", resume=False)


def rows_in(folder: Path) -> list[Row]:
    return results_from_json(read_json(folder / "results.json"))


@pytest.mark.slow
def test_a_recipe_calibrates_stores_and_fine_tunes_what_it_converted(chain: Path) -> None:
    converted, calibrated, tuned = rows_in(chain)[1:]
    assert [row.calibration for row in (converted, calibrated)] == ["none", "mse+membrane_mean"]
    assert (calibrated.calibration, calibrated.algorithm) == (tuned.calibration, "none")
    assert tuned.algorithm == "bptt"
    assert {row.T for row in (converted, calibrated, tuned)} == {4}
    recipe = load_stored(chain)
    splits = open_data(recipe.data)
    subject = run_subject(chain, recipe, splits)
    due, _ = convert_for(subject.qann, recipe.calibrated_setting(), subject.calibration)
    stored, batch = mt.load(chain / "calibrate" / "network"), images(splits.test, 8)
    logits = simulate(stored, batch, time_steps=4).logits
    assert torch.equal(logits, simulate(due, batch, time_steps=4).logits)
    plain, _ = convert_for(subject.qann, replace(recipe.calibrated_setting(), calibration=()), None)
    assert not torch.equal(logits, simulate(plain, batch, time_steps=4).logits)
    assert recipe.finetune_job().setting == recipe.calibrated_setting()


@pytest.mark.slow
def test_other_rows_are_no_reason_to_calibrate_and_fine_tune_again(
    chain: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(chain, tmp_path / "run"))
    lines = len((out / "log.jsonl").read_text().splitlines())
    again = load_recipe(chain.parent / "chain.yaml", ["evaluate.time_steps=[2]"])
    run(again, out, resume=False, overwrite=True)
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[lines:]]
    started = [item["stage"] for item in events if item["event"] == "started"]
    assert started == ["evaluate", "inspect", "report"]


@pytest.mark.slow
def test_the_command_fine_tunes_from_the_stored_calibration(chain: Path) -> None:
    stored = chain / "calibrate" / "network" / "config.json"
    before = stored.read_bytes()
    out = run_finetune(str(chain), ["finetune.algorithm=dsr"], None)
    first, last = rows_in(out)
    assert first.calibration == last.calibration == "mse+membrane_mean"
    assert first.snn_accuracy == rows_in(chain)[2].snn_accuracy
    assert out.name.startswith("dsr_n1_t4_every_step_unsigned_learns-weights_")
    assert stored.read_bytes() == before


def test_fine_tuning_asks_for_no_other_network_than_the_calibrated_one(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(COMMON + CHAIN)
    with pytest.raises(RecipeError, match=r"finetune\.time_steps\s+is 3, but calibrate\.time_st"):
        load_recipe(tmp_path / "chain.yaml", ["finetune.time_steps=3"])
    with pytest.raises(RecipeError, match="leave the block out, or name calibrations"):
        load_recipe(tmp_path / "chain.yaml", ["calibrate.calibration=none"])


def test_folders_of_fine_tunings_are_named_by_all_that_differs() -> None:
    changes = (
        *({}, {"surrogate": "atan"}, {"learns": ("weights",)}, {"signed": False}),
        *(
            {"detach_reset": False},
            {"firing": Firing.CASCADE},
            {"time_steps": 3},
            {"thresholds": 3},
        ),
        *({"train": TrainSpec(epochs=7)}, {"train": TrainSpec(epochs=2, lr=0.005, seed=1)}),
    )
    names = [_name(FinetuneBlock(**item)) for item in changes]
    assert names[0] == "bptt_n1_t2_once"
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_calibrated_fine_tuned_and_scratch_networks_are_evaluated(
    chain: Path, scratch: Path, tmp_path: Path
) -> None:
    names = (chain / "calibrate", chain / "finetune", scratch)
    options = EvalOptions(tuple(map(str, names)), time_steps=(1, 2, 4, 8), errors=4)
    rows = run_eval(options, tmp_path)
    calibrated, tuned, from_scratch = (
        [row for row in rows if row.run == name] for name in ("calibrate", "finetune", "run")
    )
    assert [row.T for row in tuned] == [1, 2, 4, 8]
    assert [row.T for row in from_scratch] == [1, 2], "steps that it was not trained for"
    due = rows_in(chain)
    assert calibrated[2].snn_accuracy == due[2].snn_accuracy
    assert tuned[2].snn_accuracy == due[3].snn_accuracy
    assert tuned[2].spikes_per_neuron == pytest.approx(due[3].spikes_per_neuron)
    assert [row.snn_accuracy for row in from_scratch] == [
        row.snn_accuracy for row in rows_in(scratch)
    ]
    assert (tuned[0].weight_bits, from_scratch[0].weight_bits) == (4, None)
    said = (tmp_path / "errors.md").read_text()
    assert "## finetune, as it is stored" in said
    assert "## run, as it is stored" in said
    assert "what the float network of the same architecture costs" in said


@pytest.mark.slow
def test_stored_networks_are_not_evaluated_on_other_images_or_classes(
    chain: Path, scratch: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(COMMON + CHAIN)
    for keys, message in (
        (("data.classes=3", "model.classes=3"), "is 3, the head has 4 rows"),
        (("data.image_size=16",), r"images are \(1, 16, 16\), the network's \(1, 8, 8\)"),
    ):
        for folder in (chain / "finetune", scratch):
            options = EvalOptions((str(folder),), keys, (str(tmp_path / "other.yaml"),))
            with pytest.raises(RecipeError, match=message):
                run_eval(options, tmp_path / "out")


@pytest.mark.slow
def test_stored_networks_go_through_every_verb_or_are_refused_by_name(
    chain: Path, scratch: Path, tmp_path: Path
) -> None:
    tuned, network = mt.load(chain / "finetune" / "network"), mt.load(scratch / "spiking")
    shown = torch.randn(4, 1, 8, 8)
    mt.save(tuned, tmp_path / "tuned")
    again = mt.load(tmp_path / "tuned")
    due = simulate(tuned, shown, time_steps=4).logits
    assert torch.equal(simulate(again, shown, time_steps=4).logits, due)
    assert mt.energy(tuned, shown, time_steps=4).totals
    whole = simulate(tuned, shown, time_steps=4, arithmetic=IntegerArithmetic(tuned)).logits[-1]
    assert torch.equal(mt.integer(tuned, backend="torch")(shown, 4), whole)
    for folder, what in ((scratch, "trained from scratch"), (chain / "finetune", "fine-tuned")):
        with pytest.raises(CheckpointError, match=f"was {what}: bench times a quantized network"):
            open_network(str(folder), tmp_path)
    assert isinstance(network, ScratchNetwork)
    mt.save(network, tmp_path / "scratch")
    assert torch.equal(mt.load(tmp_path / "scratch")(shown), network(shown))
    assert mt.energy(network, shown, time_steps=2).totals[0].synops > 0
    for verb, call in {
        "integer": lambda: mt.integer(network),
        "simulate": lambda: mt.simulate(network, shown, time_steps=1),
        "calibrate": lambda: mt.calibrate(
            network, shown, [mt.calibration.MembraneMean()], time_steps=1
        ),
    }.items():
        with pytest.raises(
            SpecError, match=f"{verb} takes a converted network, not a ScratchNetwork"
        ):
            call()


@pytest.mark.slow
def test_tandem_learning_goes_layer_by_layer_by_recipe(chain: Path, tmp_path: Path) -> None:
    overrides = (
        *("calibrate=null", "finetune.algorithm=tandem", "finetune.progressive=true"),
        *("finetune.train.patience=1", "finetune.train.epochs=1", "finetune.time_steps=2"),
    )
    out = run_finetune(str(chain), overrides, tmp_path / "out")
    assert len(list((out / "learn").glob("stage_*"))) == 5, "one for each layer, and the read-out"
    assert rows_in(out)[-1].algorithm == "progressive_tandem"
    with pytest.raises(RecipeError, match=r"set train\.patience"):
        load_stored(chain, [*overrides, "finetune.train.patience=null"])
    with pytest.raises(RecipeError, match="layer by layer is for algorithm tandem"):
        load_stored(chain, [*overrides, "finetune.algorithm=dsr"])
