"""One recipe from start to end: its folder, and what is kept."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import (
    STAGES,
    assert_equal_runs,
    entered,
    events,
    files,
    recipe,
    run,
)

from mt_convert.data import batches, open_data
from mt_convert.data.splits import select_test_images
from mt_convert.errors import CheckpointError, RecipeError
from mt_convert.evaluation.settings import Setting
from mt_convert.experiments import conversion_run, stages
from mt_convert.experiments.models.build import load_ann
from mt_convert.experiments.recipes.conversion import (
    EvaluateBlock,
    load_recipe,
)
from mt_convert.neurons.ladder import Radix
from mt_convert.quantization.chain import float_tensors
from mt_convert.quantization.quantize import QuantizedModel
from mt_convert.report.rows import results_from_json
from mt_convert.spiking import archive
from mt_convert.system.storage import load_tensors, save_tensors
from mt_convert.training.accuracy import accuracy
from mt_convert.training.loss import TrainLoss
from mt_convert.training.spec import TrainSpec, without_quantizers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
]  # nearly every test runs a recipe


# ------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_a_folder_per_stage_and_six_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"recipe.yaml", "versions.json", "log.jsonl", "results.json"}
    assert names == {*STAGES, *files, "results.csv", "report.html"}
    for stage, artefact in {
        "ann": "model.safetensors",
        "quantize": "config.json",
        "train": "config.json",
        "convert": "config.json",
        "evaluate": "rows.json",
        "inspect": "inspection.json",
        "report": "report.md",
    }.items():
        assert (finished / stage / artefact).stat().st_size > 0


def test_results_hold_a_row_for_each_setting_and_end_with_the_iso_level_rows(
    finished: Path,
) -> None:
    stored = json.loads((finished / "results.json").read_text())
    assert stored["schema"] == "mt_convert.results/2"
    measured = stored["neurobench"]["n = 15, T = 1"]
    assert set(measured) == {
        *("footprint", "connection_sparsity", "activation_sparsity", "synaptic_operations")
    }
    assert set(measured["synaptic_operations"]) == {"Effective_MACs", "Effective_ACs", "Dense"}
    found = [
        (row["presentation"], row["mode"], row["signed"], row["n"], row["T"])
        for row in stored["rows"]
    ]
    once = [
        ("once", mode, True, n, steps)
        for mode in ("parallel", "cascade")
        for n in (1, 15)
        for steps in (1, 2)
    ]
    even = [("every_step", "parallel", False, n, 15 // n) for n in (1, 3, 5, 15)]
    digits = [("once", "parallel", False, n, steps) for n, steps in ((1, 4), (3, 2))]
    assert found == once + even + digits
    for row in stored["rows"]:
        assert (row["model"], row["dataset"], row["images"]) == ("digits_cnn", "synthetic", 16)
        assert 0 <= row["exact_share"] <= 1
        assert 0 <= row["snn_accuracy"] <= 100
        assert row["packets_per_neuron"] <= row["spikes_per_neuron"]
        if row["n"] == 15 or row["ladder"] == "radix":
            assert row["exact_share"] == 1.0
            assert row["snn_accuracy"] == row["qann_accuracy"]


def test_the_recipe_in_the_folder_is_resolved_and_loads_again(finished: Path) -> None:
    text = (finished / "recipe.yaml").read_text()
    assert "smoke:" not in text
    assert "batch_norm: keep" in text
    assert load_recipe(finished / "recipe.yaml") == recipe()


def test_versions_name_the_software_and_the_machine(finished: Path) -> None:
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"mt-convert", "timm", "brevitas", "accelerate", "numpy"} <= set(versions["packages"])
    assert versions["machine"]["threads"] == 1
    assert versions["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_log_tells_each_stage_in_order(finished: Path) -> None:
    expected = [(stage, event) for stage in STAGES for event in ("started", "finished")]
    assert events(finished)[: len(expected)] == expected


def test_the_probe_of_the_run_says_exact(finished: Path) -> None:
    stored = json.loads((finished / "convert" / "report.json").read_text())
    assert stored["report"]["verdict"]["exact_t1"] is True
    assert (
        stored["report"]["verdict"]["images"] == 16
    )  # the calibration images, as there are fewer than 32
    analog = stored["report"]["analog"]
    assert "encoded image" in analog[0]["reason"]


def test_the_page_holds_the_rows_and_the_closing_sentence(finished: Path) -> None:
    page = (finished / "report" / "report.md").read_text()
    rows = results_from_json(json.loads((finished / "results.json").read_text()))
    assert page.count(f"| {rows[0].ann_accuracy:.2f} | {rows[0].qann_accuracy:.2f} |") == len(rows)
    assert "equals its quantized network bit for bit at T = 1" in page
    assert "## Analog" in page


def test_the_stored_network_is_the_one_that_was_evaluated(finished: Path) -> None:
    qann, snn = archive.load(finished / "train"), archive.load(finished / "convert")
    assert isinstance(qann, QuantizedModel)
    assert qann.spec == recipe().quantize.spec()
    assert [layer.spec.ladder.n for _, layer in snn.neurons()] == [15] * 4


# ------------------------------------------------------------------------------- what is run again


def test_a_second_run_keeps_every_stage_and_touches_no_file(run_copy: Path) -> None:
    before, lines = files(run_copy, "log.jsonl"), len(events(run_copy))
    run(recipe(), run_copy, resume=False)
    assert files(run_copy, "log.jsonl") == before
    assert events(run_copy)[lines:] == [(stage, "kept") for stage in STAGES]


def test_another_evaluation_runs_only_evaluate_and_report(finished: Path, run_copy: Path) -> None:
    before, lines = files(run_copy), len(events(run_copy))
    run(recipe("evaluate.thresholds=[3]", "evaluate.iso_level=false"), run_copy, resume=False)
    assert entered(run_copy, lines) == ["evaluate", "inspect", "report"]
    after = files(run_copy)
    kept = [
        name for name in before if name.split("/")[0] in ("ann", "quantize", "train", "convert")
    ]
    assert all(before[name] == after[name] for name in kept)
    rows = json.loads((run_copy / "results.json").read_text())["rows"]
    assert [(row["n"], row["T"]) for row in rows] == 2 * [(3, 1), (3, 2)]  # of both modes
    assert "n = 3" not in (finished / "report" / "report.md").read_text()
    assert load_recipe(run_copy / "recipe.yaml").evaluate.thresholds == (3,)


def test_a_network_of_digits_is_converted_and_read_before_all_digits_are_there(
    run_copy: Path,
) -> None:
    lines = len(events(run_copy))
    run(recipe("convert.ladder=radix", "evaluate.iso_level=false"), run_copy, resume=False)
    assert entered(run_copy, lines) == ["convert", "evaluate", "inspect", "report"]
    snn = archive.load(run_copy / "convert")
    assert snn.whole_window
    assert {str(neuron.spec.ladder) for _, neuron in snn.neurons()} == {str(Radix(1, steps=4))}
    report = json.loads((run_copy / "convert" / "report.json").read_text())["report"]
    depth = report["latency"]["depth"]
    points = json.loads((run_copy / "evaluate" / "truncation.json").read_text())
    steps = [(point["curve"], point["network_step"]) for point in points]
    assert steps[:4] == [("read_out", 4 * depth + t) for t in (1, 2, 3, 4)]
    assert steps[4:] == [("every_layer", t * (depth + 1)) for t in (1, 2, 3, 4)]
    rows = json.loads((run_copy / "results.json").read_text())["rows"]
    assert points[3]["accuracy"] == points[7]["accuracy"] == rows[0]["qann_accuracy"]
    assert "first digits" in (run_copy / "report" / "report.md").read_text()


def test_another_name_alone_writes_only_the_report_anew(run_copy: Path) -> None:
    lines = len(events(run_copy))
    run(recipe("name=other"), run_copy, resume=False)
    assert entered(run_copy, lines) == ["report"]
    assert "name: other" in (run_copy / "recipe.yaml").read_text()


def test_results_that_were_lost_or_changed_are_put_back(finished: Path, run_copy: Path) -> None:
    wanted = (finished / "results.json").read_bytes()
    (run_copy / "results.json").unlink()
    run(recipe(), run_copy, resume=False)
    assert (run_copy / "results.json").read_bytes() == wanted
    (run_copy / "results.json").write_text("{}")
    run(recipe(), run_copy, resume=False)
    assert (run_copy / "results.json").read_bytes() == wanted


def test_the_same_recipe_in_two_folders_gives_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    assert_equal_runs(finished, run(recipe(), tmp_path / "again", resume=False))


@pytest.mark.long
def test_a_checkpoint_that_changes_under_its_name_is_noticed(
    finished: Path, run_copy: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(finished / "ann" / "model.safetensors", weights)
    given = recipe(f"model.checkpoint={weights}", "ann=null")
    run(given, run_copy, resume=False)
    lines = len(events(run_copy))
    run(given, run_copy, resume=False)
    assert entered(run_copy, lines) == []
    tensors = load_tensors(weights)
    save_tensors(weights, {name: tensor * 1.5 for name, tensor in tensors.items()})
    lines = len(events(run_copy))
    run(given, run_copy, resume=False)
    assert entered(run_copy, lines)[0] == "ann"


def test_a_run_goes_on_from_a_stored_quantized_network(finished: Path, tmp_path: Path) -> None:
    stored = finished / "train"
    out = run(
        recipe(f"quantize.checkpoint={stored}", "train=null"), tmp_path / "from", resume=False
    )
    one, other = (archive.load(folder / "train") for folder in (finished, out))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    # not the whole file: the recipes differ, the networks do not
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.long
def test_a_run_starts_from_the_trained_network_of_another(finished: Path, tmp_path: Path) -> None:
    start = tmp_path / "wide"
    shutil.copytree(finished, start)
    few = ["quantize.weight_bits=2", "quantize.act_bits=2", "train=null", f"model.from_run={start}"]
    out = run(recipe(*few), tmp_path / "few", resume=False)
    wide, narrow = archive.load(start / "train"), archive.load(out / "quantize")
    given, taken = float_tensors(wide.layers), float_tensors(narrow.layers)
    assert all(torch.equal(taken[name], given[name]) for name in given)
    ann = load_tensors(out / "ann" / "model.safetensors")
    own = load_tensors(finished / "ann" / "model.safetensors")
    assert all(torch.equal(ann[name], own[name]) for name in own), "the float network is its own"
    name = next(name for name in own if name.endswith(".weight"))
    assert not torch.equal(ann[name], given[name])

    lines = len(events(out))  # the same content elsewhere is the same start
    shutil.copytree(start, tmp_path / "moved")
    few[-1] = f"model.from_run={tmp_path / 'moved'}"
    run(recipe(*few), out, resume=False)
    assert "ann" not in entered(out, lines)
    with torch.no_grad():
        wide.layers.get_parameter(name).mul_(2)
    archive.save(wide, tmp_path / "moved" / "train")
    lines = len(events(out))
    run(recipe(*few), out, resume=False)
    assert entered(out, lines)[0] == "quantize"


def test_the_teacher_of_a_distillation_is_the_float_network_of_the_run(
    finished: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, torch.Tensor]] = []
    loss = TrainLoss.__call__

    def look(self: TrainLoss, logits: Any, targets: Any, images: Any) -> Any:
        assert self._teacher is not None
        assert not self._teacher.training
        asked.append({name: value.clone() for name, value in self._teacher.state_dict().items()})
        return loss(self, logits, targets, images)

    monkeypatch.setattr(TrainLoss, "__call__", look)
    words = "train.distillation_weight=0.9", "train.distillation_temperature=4"
    run(recipe(*words), run_copy, resume=False)
    ann = load_tensors(finished / "ann" / "model.safetensors")
    for teacher in (asked[0], asked[-1]):
        assert all(torch.equal(teacher[name], ann[name]) for name in ann)


def test_keys_that_came_later_are_no_other_inputs_where_they_are_not_used() -> None:
    settings = recipe().model_dump(mode="json", by_alias=True)
    before = {**settings["model"]}
    for name in ("import", "rows"):
        assert before.pop(name) == stages.LATER[name]
    assert stages._without_unused(settings["model"]) == before
    used = {**settings["model"], "rows": [3, 4]}
    assert stages._without_unused(used) == {**before, "rows": [3, 4]}
    plain = TrainSpec(epochs=1)
    assert "mse_weight" not in plain.numbers()
    assert dataclasses.replace(plain, mse_weight=0.1).numbers()["mse_weight"] == 0.1


def test_the_control_arm_is_the_float_network_trained_by_the_same_schedule(
    finished: Path, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[dict[str, torch.Tensor], TrainSpec]] = []
    fit = conversion_run.fit

    def look(model: Any, splits: Any, spec: TrainSpec, *args: Any, **more: Any) -> Any:
        trained.append(({name: value.clone() for name, value in model.state_dict().items()}, spec))
        return fit(model, splits, spec, *args, **more)

    monkeypatch.setattr(conversion_run, "fit", look)
    lines = len(events(run_copy))
    run(recipe("control=true"), run_copy, resume=False)
    due = ["control", "control_accuracy", "inspect", "report"]
    assert entered(run_copy, lines) == due, "the rest is kept"
    ((start, spec),) = trained
    ann = load_tensors(finished / "ann" / "model.safetensors")
    assert all(torch.equal(start[name], ann[name]) for name in ann)
    assert spec == without_quantizers(recipe().train or spec)

    network = load_ann(recipe().model, recipe().data.image_size, run_copy / "control")
    test = select_test_images(recipe().data, None, open_data(recipe().data))
    rows = results_from_json(json.loads((run_copy / "results.json").read_text()))
    assert {row.control_accuracy for row in rows} == {accuracy(network, test, 16)}
    plain = results_from_json(json.loads((finished / "results.json").read_text()))
    assert [dataclasses.replace(row, control_accuracy=None) for row in rows] == plain
    assert "control %" in (run_copy / "report" / "report.md").read_text()

    lines = len(events(run_copy))
    run(recipe("control=true", "evaluate.time_steps=[1,3]"), run_copy, resume=False)
    due = ["evaluate", "control_accuracy", "inspect", "report"]
    assert entered(run_copy, lines) == due, "other rows are no reason to train again"


@pytest.mark.long
def test_other_quantizers_keep_the_control_arm_and_a_chain_goes_on_from_it(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, torch.Tensor]] = []
    fit = conversion_run.fit

    def look(model: Any, *args: Any, **more: Any) -> Any:
        trained.append({name: value.clone() for name, value in model.state_dict().items()})
        return fit(model, *args, **more)

    monkeypatch.setattr(conversion_run, "fit", look)
    run(recipe("control=true"), run_copy, resume=False)
    lines = len(events(run_copy))
    run(recipe("control=true", "quantize.weight_bits=3"), run_copy, resume=False)
    assert "train" in entered(run_copy, lines)
    assert "control" not in entered(run_copy, lines), "nor are other quantizers"
    run(recipe("control=true"), run_copy, resume=False)

    chain = ["quantize.weight_bits=2", f"model.from_run={run_copy}", "control=true"]
    out = run(recipe(*chain), tmp_path / "few", resume=False)
    end = load_tensors(run_copy / "control" / "model.safetensors")
    assert all(torch.equal(trained[-1][name], end[name]) for name in end), "it goes on"
    teacher = load_tensors(out / "ann" / "model.safetensors")
    assert any(not torch.equal(teacher[name], end[name]) for name in end)


def test_a_control_arm_that_cannot_be_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing is trained"):
        recipe("control=true", "train=null")
    words = "quantize.weight_bits=2", f"model.from_run={finished}", "control=true"
    with pytest.raises(RecipeError, match="has no control arm to go on from"):
        run(recipe(*words), tmp_path / "out", resume=False)
    assert not (tmp_path / "out").exists()


def test_a_start_of_another_network_is_refused_before_anything_is_written(
    finished: Path, tmp_path: Path
) -> None:
    words = f"model.from_run={finished}", "data.image_size=16", "quantize.batch_norm=fold"
    with pytest.raises(RecipeError, match="a run of another network") as caught:
        run(recipe(*words), tmp_path / "out", resume=False)
    found = {fault.where: fault.what for fault in caught.value.faults}
    assert found == {"data.image_size": "is 16", "quantize.batch_norm": "is fold"}
    with pytest.raises(CheckpointError, match=r"holds no recipe\.yaml; finish it: mt-convert run"):
        run(recipe(f"model.from_run={tmp_path}"), tmp_path / "out", resume=False)
    with pytest.raises(RecipeError, match=r"model\.from_run  nowhere is not here"):
        run(recipe("model.from_run=nowhere"), tmp_path / "out", resume=False)
    with pytest.raises(RecipeError, match="both name a start"):
        recipe(f"model.from_run={finished}", f"quantize.checkpoint={finished / 'train'}")
    assert not (tmp_path / "out").exists()


def test_settings_are_every_combination_in_a_fixed_order() -> None:
    block = recipe(
        "evaluate.presentations=[once,every_step]",
        "evaluate.modes=[parallel,cascade]",
        "evaluate.signed=[true,false]",
        "evaluate.whole_window=[false,true]",
        "evaluate.iso_level=false",
    ).evaluate
    found = [item for item in block.settings(15) if isinstance(item, Setting)]
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 2
    assert [setting.ladder.n for setting in found[:2]] == [1, 15]
    assert {setting.time_steps for setting in found} == {(1, 2)}


def test_fewer_images_are_drawn_from_all_classes_and_not_the_first_of_the_files(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(20):
                pixels = np.full((8, 8), number, dtype=np.uint8)
                Image.fromarray(pixels, "L").save(folder / f"{number}.png")
    loaded = load_recipe(
        "digits",
        [
            f"data.root={tmp_path}",
            "data.dataset=''",
            "data.test_split=test",
            "data.classes=2",
            "model.classes=2",
            "data.calibration_images=4",
            "evaluate.images=12",
        ],
    )
    splits = open_data(loaded.data)
    evaluated = select_test_images(loaded.data, loaded.evaluate.images, splits)
    labels = [label for _, some in batches(evaluated, 4) for label in some.tolist()]
    assert len(labels) == 12
    assert set(labels) == {0, 1}
    assert select_test_images(loaded.data, EvaluateBlock().images, splits) is splits.test
