"""What is compared: settings from a block, networks and images from runs and recipes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from commands import Command

from mt_convert.calibration.spec import MeanSquaredError
from mt_convert.calibration.text import parse
from mt_convert.errors import CheckpointError, RecipeError, SpecError
from mt_convert.evaluation.row_cache import RowCache
from mt_convert.evaluation.settings import METHODS, PeerSetting, Setting
from mt_convert.evaluation.stored import StoredNetwork
from mt_convert.experiments import eval_table
from mt_convert.experiments import run as experiment
from mt_convert.experiments.recipes.conversion import EvaluateBlock, dump, load_recipe
from mt_convert.experiments.subjects import float_spec, subjects_of
from mt_convert.neurons.ladder import Binary, Uniform
from mt_convert.report.rows import results_from_json, results_to_json
from mt_convert.report.tables import accuracy_lines
from mt_convert.spiking import archive
from mt_convert.spiking.convert import convert
from mt_convert.system.storage import read_json

SMALL = (
    *("data.limit=120", "data.test_images=40", "data.calibration_images=32", "ann=null"),
    *("train=null", "evaluate.thresholds=[1]", "evaluate.time_steps=[1]", "evaluate.images=20"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits, untrained."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return experiment.run(load_recipe("digits", SMALL), out, resume=False)


def test_a_calibration_is_made_for_each_number_of_steps_or_for_those_named() -> None:
    block = EvaluateBlock(thresholds=(1,), calibrations=("none", "mse"), iso_level=False)
    found = block.settings(15)
    assert [(item.calibration, item.time_steps, item.calibrated_T) for item in found] == [
        ((), (1, 2, 4, 8, 16), None),
        *(((MeanSquaredError(),), (T,), T) for T in (1, 2, 4, 8, 16)),
    ]
    some = block.model_copy(update={"calibrated_for": (2, 8)}).settings(15)[1:]
    assert [(item.time_steps, item.calibrated_T) for item in some] == [((1, 2), 2), ((4, 8, 16), 8)]


def test_methods_take_the_place_of_combinations_and_single_thresholds_are_there_once() -> None:
    methods = ("rate", "mt_signed", "sinabs")
    block = EvaluateBlock(thresholds=(1, 3), methods=methods, time_steps=(4,), iso_level=True)
    found = block.settings(3)
    names = [(item.method, item.ladder.n) for item in found if isinstance(item, Setting)]
    assert names[:3] == [("rate", 1), ("mt_signed", 1), ("mt_signed", 3)]
    assert len(names) == 3 + 2 + 1  # iso-level: n = 1 and 3; digits: n = 1
    assert found[-1] == PeerSetting("sinabs", (4,))


def test_what_a_method_calibrates_stands_before_what_is_added() -> None:
    block = EvaluateBlock(
        methods=("rate",), calibrations=("mse",), time_steps=(4,), iso_level=False
    )
    (found,) = block.settings(15)
    assert isinstance(found, Setting)
    assert found.calibration == (*METHODS["rate"].calibration, *parse("mse"))


@pytest.mark.parametrize(
    ("key", "value"), [("methods", ("rat",)), ("calibrations", ("msee",)), ("calibrated_for", (0,))]
)
def test_a_wrong_value_of_the_block_is_a_fault(key: str, value: tuple[object, ...]) -> None:
    text = str(list(value)).replace("'", "")
    with pytest.raises(RecipeError, match=f"evaluate.{key}"):
        load_recipe("digits", [f"evaluate.{key}={text}"])


@pytest.mark.long
def test_the_block_is_run_by_a_recipe_on_every_data_set(tmp_path: Path) -> None:
    extra = (
        "{dataset: digits, image_size: 8, channels: 1, classes: 10, name: again, mean: [0.3],"
        " std: [0.4], calibration_images: 8, test_images: 20}"
    )
    words = (*SMALL, "evaluate.calibrations=[none, mse]", f"evaluate.data=[{extra}]")
    out = experiment.run(load_recipe("digits", words), tmp_path / "out", resume=False)
    rows = results_from_json(read_json(out / "results.json"))
    assert {row.dataset for row in rows} == {"again", *({row.dataset for row in rows} - {"again"})}
    assert len({row.dataset for row in rows}) == 2
    assert {row.calibration for row in rows} == {"none", "mse"}
    assert {row.images for row in rows} == {20}


@pytest.mark.slow
def test_a_run_gives_its_trained_network_and_a_recipe_its_float_one(folder: Path) -> None:
    (run,) = subjects_of(str(folder), [], [], count=10)
    assert run.qann.spec.weight_bits == 4
    assert (len(run.test), len(run.calibration)) == (10, 32)
    (free,) = subjects_of("digits", [], SMALL, count=10)
    assert free.qann.spec == float_spec(8)
    (taken,) = subjects_of(str(folder), [], [], act_bits=3, count=10)
    assert taken.qann.spec == float_spec(3)
    assert taken.ann is not None
    images = taken.calibration[:4]
    with torch.no_grad():
        assert not torch.equal(taken.qann(images), taken.ann(images))
        assert torch.allclose(free.qann(images), free.ann(images), atol=0.3)  # type: ignore[misc]


@pytest.mark.slow
def test_an_unfinished_run_and_images_of_another_size_are_told(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    with pytest.raises(CheckpointError, match="no finished stage 'ann'"):
        subjects_of(str(tmp_path / "begun"), [], [])
    other = load_recipe("cifar10_resnet20_w4a4", smoke=True)
    with pytest.raises(RecipeError, match=r"data.image_size"):
        subjects_of(str(folder), [other], [])


def test_everything_wrong_with_what_is_wanted_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        eval_table.EvalOptions(names=(), methods=("rates",), calibrations=("msse",))
    assert len(caught.value.faults) == 3
    assert "mt_signed" in str(caught.value)


@pytest.mark.long
def test_eval_compares_networks_methods_and_calibrations(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    words = ("eval", str(folder), "digits", *SMALL[:3], "--levels", "1,3", "--time-steps", "1,4")
    more = ("--method", "rate", "--method", "mt_signed", "--calibrate", "mse", "--images", "16")
    done = command(*words, *more, "--out", "out")
    assert done.returncode == 0, done.stderr
    rows = results_from_json(read_json(tmp_path / "out" / "results.json"))
    assert {row.weight_bits for row in rows} == {4, None}
    assert {row.method for row in rows} == {"rate", "mt_signed"}
    assert {row.calibration for row in rows} == {
        *("none", "mse", "maximum+initial_potential(0)", "maximum+initial_potential(0)+mse")
    }
    assert "SNN %" in done.stdout
    lines = (tmp_path / "out" / "README.md").read_text().count("\n| ")
    assert lines == (2 + len(rows) // 2) + (2 + len(rows))  # one line for all T, then one for each
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    again = command(*words, *more, "--out", "out")
    assert again.stdout == done.stdout
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits", "--levels", "0"), "--levels is '0'"),
        (("digits", "--time-steps", "1,x"), "--time-steps is '1,x'"),
        (("digits", "--calibrate", "mae"), "mae"),
        (("digits", "--method", "mt"), "mt_uniform"),
        (("nowhere",), "nowhere"),
        (("digits", "--data", "nowhere"), "nowhere"),
        (("a.b=1",), "name at least one"),
    ],
)
def test_wrong_words_of_eval_are_one_message(
    command: Command, words: tuple[str, ...], said: str
) -> None:
    done = command("eval", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_errors_by_cause_have_a_page_with_pictures(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    words = ("eval", str(folder), "--levels", "1,15", "--time-steps", "1,2", "--images", "12")
    done = command(*words, "--errors", "8", "--out", "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "errors.md").read_text()
    names = re.findall(r"\]\(([^)]+\.png)\)", page)
    assert len(names) == 4
    assert all((tmp_path / "out" / name).is_file() for name in names)
    assert "Errors on 8 images" in page


@pytest.mark.long
def test_two_processes_make_the_same_table_as_one(
    command: Command, process: Command, folder: Path, tmp_path: Path
) -> None:
    words = ("eval", str(folder), "--levels", "1,3", "--time-steps", "1,4", "--batch-size", "7")
    words = (*words, "--images", "33", "--calibrate", "mse+membrane_mean")
    assert command(*words, "--out", "one").returncode == 0
    done = process(*words, "--out", "two", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("T = 4") == 1
    one, two = (tmp_path / name / "results.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_a_stored_quantized_network_is_evaluated_on_the_images_of_a_recipe(
    folder: Path, tmp_path: Path
) -> None:
    digits = load_recipe("digits", SMALL)
    (found,) = subjects_of(str(folder / "train"), [digits], [], count=10)
    (run,) = subjects_of(str(folder), [], [], count=10)
    assert found.ann is None
    assert found.describe == {"model": "train", "dataset": run.describe["dataset"], "seed": None}
    assert torch.equal(found.calibration, run.calibration)
    assert torch.equal(found.qann(found.calibration), run.qann(run.calibration))
    (row,) = RowCache(tmp_path).rows(found, [Setting(Uniform(15), (1,))], "rows")
    assert (row.ann_accuracy, row.seed, row.exact_share) == (None, None, 1.0)
    assert results_from_json(results_to_json([row])) == [row]
    assert "None" not in "".join(accuracy_lines([row]))


@pytest.mark.slow
def test_a_stored_network_without_images_or_with_others_is_told(folder: Path) -> None:
    with pytest.raises(RecipeError, match="--data"):
        subjects_of(str(folder / "train"), [], [])
    digits = load_recipe("digits", SMALL)
    with pytest.raises(RecipeError, match="no float network"):
        subjects_of(str(folder / "train"), [digits], [], act_bits=8)
    other = load_recipe("cifar10_resnet20_w4a4", smoke=True)
    with pytest.raises(RecipeError, match="images are"):
        subjects_of(str(folder / "train"), [other], [])


@pytest.mark.slow
def test_a_stored_spiking_network_is_evaluated_as_it_is(folder: Path, tmp_path: Path) -> None:
    digits = load_recipe("digits", SMALL)
    trained = archive.load(folder / "train")
    (quantized,) = subjects_of(str(folder / "train"), [digits], [], count=10)
    columns = ("snn_accuracy", "qann_accuracy", "agreement", "exact_share", "spikes_per_neuron")
    for number, how in enumerate(
        (
            {"ladder": Uniform(15), "signed": True},
            {"ladder": Uniform(3), "signed": True},
            {"ladder": Binary(2), "signed": False, "presentation": "every_step"},
            {"ladder": Uniform(1), "signed": True, "whole_window": True},
        )
    ):
        place = tmp_path / f"mine{number}"
        archive.save(convert(trained, **how), place)  # type: ignore[arg-type]
        (stored,) = subjects_of(str(place), [digits], [], count=10)
        assert isinstance(stored.qann, StoredNetwork)
        (setting,) = stored.qann.settings((1, 3))
        assert setting.firing is not None
        rows = RowCache(tmp_path).rows(stored, [setting], "rows")
        same = dataclasses.replace(setting, method="")
        expected = RowCache(tmp_path).rows(quantized, [same], "rows")
        for row, other in zip(rows, expected, strict=True):
            assert [getattr(row, name) for name in columns] == [
                getattr(other, name) for name in columns
            ]
            assert (row.method, row.n, row.T, row.levels) == ("stored", other.n, other.T, 15)
            assert (row.model, row.weight_bits) == (place.name, other.weight_bits)
    assert len({stored.identity for stored in [quantized, stored]}) == 2


@pytest.mark.slow
def test_the_command_evaluates_and_calibrates_a_stored_spiking_network(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump(load_recipe("digits", SMALL)))
    options = eval_table.EvalOptions(
        (str(folder / "convert"),),
        data=(str(recipe),),
        time_steps=(1, 2),
        calibrations=("none", "membrane_mean"),
        images=10,
    )
    rows = eval_table.run(options, tmp_path / "out")
    assert [(row.calibration, row.T) for row in rows] == [
        *(("none", 1), ("none", 2), ("membrane_mean", 1), ("membrane_mean", 2))
    ]
    assert rows[0].exact_share == 1.0
    assert "is converted already: it is evaluated as it is" in capsys.readouterr().err
