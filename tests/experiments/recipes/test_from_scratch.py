"""Recipes that train a spiking network: what they say, what is refused, what a run leaves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from mt_convert.data import batches, open_data
from mt_convert.errors import CheckpointError, RecipeError, SpecError
from mt_convert.evaluation.spiking_rows import rows_of
from mt_convert.experiments import run as experiment
from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.experiments.recipes.catalogue import shipped_recipes
from mt_convert.experiments.recipes.conversion import dump, load_recipe
from mt_convert.experiments.recipes.from_scratch import SpikingRecipe, faults_here, load
from mt_convert.experiments.show import show
from mt_convert.neurons.ladder import LADDERS, Binary, Radix, Uniform
from mt_convert.neurons.spec import IF, LIF, PLIF, Reset
from mt_convert.report.columns import markdown_table
from mt_convert.report.rows import results_from_json
from mt_convert.spiking import archive
from mt_convert.system.processes import Processes
from mt_convert.system.storage import load_tensors, read_json
from mt_convert.training.from_scratch import archive as stored
from mt_convert.training.from_scratch.spec import SpikingSpec, build_spiking

DIRECT = [name for name, path in shipped_recipes().items() if "\nspiking:" in path.read_text()]
SMALL = ("spiking.time_steps=3", "train.epochs=2")


def small(*overrides: str) -> SpikingRecipe:
    """The digits' network on a few made-up images."""
    found = load("digits_plif", [*SMALL, *overrides], smoke=True)
    assert isinstance(found, SpikingRecipe)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experiment.run(small(), tmp_path_factory.mktemp("runs") / "digits", resume=False)


def faults_of(*overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load("digits_plif", overrides, smoke=True)
    return str(error.value)


# ------------------------------------------------------------------------------------- the recipe


@pytest.mark.sampled
@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", DIRECT)
def test_a_shipped_recipe_reads_back_as_the_same(name: str, smoke: bool, tmp_path: Path) -> None:
    recipe = load(name, smoke=smoke)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    assert load(path) == recipe
    assert set(yaml.safe_load(path.read_text())) == set(SpikingRecipe.model_fields)


@pytest.mark.parametrize("name", DIRECT)
def test_a_shipped_recipe_says_how_to_run_it_and_has_a_small_variant(name: str) -> None:
    header = shipped_recipes()[name].read_text().split("\nname:")[0]
    assert all(text in header for text in (f"mt-convert run {name}", "Machine and time:"))
    assert "Expected accuracy:" in header
    recipe = load(name, smoke=True)
    assert isinstance(recipe, SpikingRecipe)
    assert recipe.images.dataset == "synthetic"
    assert faults_here(recipe) == []
    assert recipe.train.epochs == 1


def test_resnets_vggs_and_event_networks_have_recipes() -> None:
    assert {
        *("cifar10_resnet18_plif", "cifar10_vgg16_plif", "cifar100_resnet18_plif"),
        *("cifar100_vgg16_plif", "imagenet_resnet34_plif", "dvs_cifar10_vgg_plif"),
    } <= set(DIRECT)
    imagenet = load("imagenet_resnet34_plif")
    assert isinstance(imagenet, SpikingRecipe)
    assert (imagenet.spiking.neuron, imagenet.spiking.time_steps) == ("plif", 1)
    assert (imagenet.model.architecture, imagenet.images.image_size) == ("resnet34", 224)


def test_a_conversion_is_no_recipe_of_this_kind_and_the_other_way_round() -> None:
    assert not isinstance(load("digits"), SpikingRecipe)
    with pytest.raises(RecipeError, match="mt-convert run"):
        load_recipe("digits_plif")


def test_blocks_of_a_conversion_are_no_known_keys() -> None:
    text = faults_of("quantize.weight_bits=4", "convert={}")
    assert "quantize  is no known key" in text.replace("  is no", "  is no")
    assert "convert" in text


def test_values_that_are_not_allowed_are_told_all_at_once() -> None:
    text = faults_of("spiking.neuron=izhikevich", "spiking.surrogate=stdb", "spiking.start=zero")
    assert "allowed: if, lif, plif" in text
    assert "atan" in text
    assert "allowed: random, ann" in text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("spiking.algorithm=ottt_a",), "cannot learn the leak of plif"),
        (("spiking.algorithm=dsr", "spiking.neuron=lif", "spiking.reset=hard"), "reset: soft"),
        (("spiking.algorithm=dsr", "spiking.neuron=lif"), "weigh steps alike: take 2.0"),
        (
            ("spiking.algorithm=ottt_a", "spiking.tensor_train={form: htt, rank: 1}"),
            "stt or ptt, or train by bptt",
        ),
        (("spiking.learn_read_out=true",), "give read_out_tau"),
        (
            (
                "spiking.algorithm=ottt_a",
                "spiking.neuron=lif",
                "spiking.read_out_tau=2.0",
                "spiking.learn_read_out=true",
            ),
            "leave it false, or train by bptt",
        ),
        (("spiking.mode=parallel", "spiking.ladder=binary"), "allowed is cascade"),
        (("evaluate.time_steps=[9]",), "step 9"),
        (("data=null",), "either data or events"),
        (("model.classes=7",), "data.classes is 10"),
        (("spiking.tau=0.5",), "tau"),
        (("ann=null", "train.distillation_weight=0.5"), "float network that is not trained"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: tuple[str, ...], said: str) -> None:
    assert said in faults_of(*overrides)


def test_recordings_have_no_float_network_beside_them() -> None:
    with pytest.raises(RecipeError, match="leave ann out"):
        load("dvs_cifar10_vgg_plif", ["spiking.start=ann"], smoke=True)
    with pytest.raises(RecipeError, match="frames of a recording"):
        load("dvs_cifar10_vgg_plif", ["spiking.time_steps=5"], smoke=True)


def test_names_mean_neurons() -> None:
    assert SpikingSpec("if").neuron_spec().charge == IF()
    assert SpikingSpec("lif", tau=3.0).neuron_spec().charge == LIF(3.0)
    assert SpikingSpec("plif", decay_input=False).neuron_spec().charge == PLIF(2.0, False)
    assert SpikingSpec(n=4).neuron_spec().ladder == Uniform(4)
    assert SpikingSpec(n=4, mode="cascade").neuron_spec().ladder == Binary(4)  # type: ignore[arg-type]
    assert SpikingSpec(reset=Reset.HARD).neuron_spec().reset is Reset.HARD
    with pytest.raises(SpecError, match="time_steps"):
        SpikingSpec(time_steps=0)


# --------------------------------------------------------------------------------------- the run


@pytest.mark.slow
def test_a_run_leaves_the_network_its_rows_and_a_page(finished: Path) -> None:
    rows = results_from_json(read_json(finished / "results.json"))
    assert [row.T for row in rows] == [1, 2, 3]
    row = rows[-1]
    assert (row.method, row.n, row.mode, row.algorithm) == ("mt_plif", 4, "parallel", "bptt")
    assert (row.epochs, row.levels, row.qann_accuracy) == (2, 4, None)
    assert row.ann_accuracy is not None
    assert rows[0].spikes_per_neuron < row.spikes_per_neuron <= 3 * 4
    page = (finished / "report" / "report.md").read_text()
    assert markdown_table(rows) in page
    assert "QANN" not in page
    assert f"{row.snn_accuracy:.2f} % of 16 test images after 3 steps" in page


@pytest.mark.long
def test_the_float_network_can_be_the_teacher(tmp_path: Path) -> None:
    words = ("train.epochs=1", "spiking.time_steps=1", "train.distillation_weight=0.9")
    taught = experiment.run(small(*words), tmp_path / "taught", resume=False)
    alone = experiment.run(small(*words[:2]), tmp_path / "alone", resume=False)
    assert not torch.equal(*(load_weights(out) for out in (taught, alone)))


def load_weights(out: Path) -> torch.Tensor:
    return load_tensors(out / "spiking" / "model.safetensors")["linear.weight"]


@pytest.mark.slow
def test_rows_are_what_the_stored_network_answers(finished: Path) -> None:
    network = stored.load(finished / "spiking")
    test = open_data(small().data).test  # type: ignore[arg-type]
    images, labels = next(iter(batches(test, len(test))))
    read_outs, _ = network(images, range(3))
    rows = results_from_json(read_json(finished / "results.json"))
    right = (read_outs.argmax(2) == labels).float().mean(1)
    assert [row.snn_accuracy for row in rows] == pytest.approx((100 * right).tolist())
    assert torch.equal(network(images), read_outs[-1])


def test_spikes_are_counted_by_hand() -> None:
    spec = SpikingSpec("if", n=3, time_steps=2)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    with torch.no_grad():
        net[0].weight.fill_(0.0)
        net[0].bias.copy_(torch.tensor([0.7, 0.4]))  # 2 of 3 levels, then 2 again; 1, then 1
    network = build_spiking(net, spec, torch.zeros(2, 1, 8, 8))
    test = open_data(small().data).test  # type: ignore[arg-type]
    known = {"model": "m", "dataset": "d", "seed": 0, "ann_accuracy": None}
    known["presentation"] = "every_step"
    rows = rows_of(network, spec, test, [1, 2], known, batch_size=5, processes=Processes())
    assert [row.spikes_per_neuron for row in rows] == [1.5, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [name for name in LADDERS if name != Radix.kind])
def test_a_row_calls_its_ladder_as_the_recipe_does(ladder: str) -> None:
    mode = "cascade" if ladder == "binary" else "parallel"
    spec = small(f"spiking.ladder={ladder}", f"spiking.mode={mode}", "spiking.time_steps=1").spiking
    network = build_spiking(build(ModelSpec("digits_cnn", 10, 1)), spec, torch.zeros(2, 1, 8, 8))
    test = open_data(small("data.limit=100").data).test  # type: ignore[arg-type]
    known = {"model": "m", "dataset": "d", "seed": 0, "ann_accuracy": None}
    known["presentation"] = "every_step"
    (row,) = rows_of(network, spec, test, [1], known, batch_size=64, processes=Processes())
    assert row.ladder == ladder


@pytest.mark.slow
def test_a_run_shows_its_table_and_what_was_trained(finished: Path) -> None:
    text = io.StringIO()
    show(finished, Console(file=text, width=100))
    said = " ".join(text.getvalue().split())
    assert "layers of mt_plif neurons (parallel, n = 4), trained by bptt for 2 epochs" in said
    assert str(finished) in said.replace(" ", "") or finished.name in said


@pytest.mark.slow
def test_a_finished_run_is_kept_and_another_seed_is_not(finished: Path) -> None:
    def entered() -> list[str]:
        lines = (finished / "log.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines[before:]]
        return [item["stage"] for item in found if item["event"] == "started"]

    before = len((finished / "log.jsonl").read_text().splitlines())
    experiment.run(small(), finished, resume=False)
    assert entered() == []
    before = len((finished / "log.jsonl").read_text().splitlines())
    other = small("evaluate.batch_size=3")
    experiment.run(other, finished, resume=False, overwrite=True)
    assert entered() == ["evaluate", "inspect", "report"]


@pytest.mark.slow
def test_it_starts_from_new_weights_or_from_those_of_the_float_network(tmp_path: Path) -> None:
    short = ("train.epochs=1", "train.lr=1e-12", "ann.epochs=2", "spiking.time_steps=1")
    fresh = experiment.run(small(*short), tmp_path / "fresh", resume=False)
    taken = experiment.run(small(*short, "spiking.start=ann"), tmp_path / "taken", resume=False)
    name = "linear.weight"
    drawn = build(ModelSpec("digits_cnn", 10, 1), seed=0).state_dict()[name]
    for out, expected in (
        (fresh, drawn),
        (taken, load_tensors(taken / "ann" / "model.safetensors")[name]),
    ):
        found = load_tensors(out / "spiking" / "model.safetensors")[name]
        assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(drawn, load_tensors(taken / "ann" / "model.safetensors")[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("spiking.neuron=lif", "spiking.algorithm=ottt_a"),
        pytest.param(("spiking.neuron=if", "spiking.algorithm=dsr"), marks=pytest.mark.long),
        pytest.param(
            ("spiking.neuron=lif", "spiking.algorithm=dsr", "spiking.read_out_tau=2.0"),
            marks=pytest.mark.long,
        ),
        ("spiking.mode=cascade", "spiking.signed=true", "spiking.algorithm=bptt_every_step"),
        pytest.param(
            ("spiking.reset=hard", "spiking.read_out_tau=2.0", "spiking.learn_read_out=true"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("spiking.mode=cascade", "spiking.n=2", "spiking.compile=true"), marks=pytest.mark.long
        ),
        pytest.param(
            ("spiking.tensor_train={form: htt, rank: 2}", "spiking.detach_reset=false"),
            marks=pytest.mark.long,
        ),
    ],
    ids=lambda words: " ".join(words),
)
def test_every_way_of_training_runs_from_a_recipe(words: tuple[str, ...], tmp_path: Path) -> None:
    out = experiment.run(
        small("ann=null", "train.epochs=1", *words), tmp_path / "out", resume=False
    )
    rows = results_from_json(read_json(out / "results.json"))
    assert len(rows) == 3
    assert rows[0].ann_accuracy is None


# ------------------------------------------------------------------------------------ what is kept


@pytest.mark.slow
def test_the_two_kinds_of_networks_are_not_read_as_each_other(finished: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mt_convert\.load"):
        archive.load(finished / "spiking")


@pytest.mark.slow
def test_a_stored_network_that_was_changed_is_refused(
    finished: Path, tmp_path: Path, write_changed: Callable[[Path, Path], None]
) -> None:
    write_changed(finished / "spiking", tmp_path / "other")
    with pytest.raises(CheckpointError, match="one was changed"):
        stored.load(tmp_path / "other")


@pytest.fixture
def write_changed() -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        content = json.loads((source / "config.json").read_text())
        content["network"]["time_steps"] = 7
        (target / "config.json").write_text(json.dumps(content))

    return write
