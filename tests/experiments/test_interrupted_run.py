"""What a fault, a kill or another recipe leaves of a run, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from small_runs import (
    SMALL,
    STAGES,
    assert_equal_runs,
    entered,
    events,
    files,
    printed,
    recipe,
    run,
)

from mt_convert.errors import CheckpointError, DataError, OutputError, RecipeError
from mt_convert.experiments import conversion_run, publication, stages
from mt_convert.experiments.recipes.conversion import (
    load_recipe,
)
from mt_convert.experiments.run import free_folder
from mt_convert.experiments.run import run as run_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
]  # nearly every test runs a recipe


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of ours catches it."""


def test_killed_at_the_end_of_each_stage_and_resumed_it_comes_to_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    replace = stages.replace_stage

    def die_before(stage: str) -> Callable[[Path, Path], None]:
        def stop(partial: Path, folder: Path) -> None:
            if folder.name == stage:
                raise Killed
            replace(partial, folder)

        return stop

    for stage in STAGES:
        monkeypatch.setattr(stages, "replace_stage", die_before(stage))
        with pytest.raises(Killed):
            run(recipe(), out, resume=True)
        assert (out / f"{stage}.partial").is_dir()
        assert not (out / "results.json").exists()
    monkeypatch.setattr(stages, "replace_stage", replace)
    assert_equal_runs(finished, run(recipe(), out, resume=True))


def test_killed_before_the_new_stages_take_the_places_of_the_old_ones_it_goes_on(
    finished: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = recipe("evaluate.iso_level=false")

    def die(first: Path, second: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publication, "exchange", die)
        with pytest.raises(Killed):
            run(other, run_copy, resume=False)
    for stage in STAGES:
        for file in (finished / stage).iterdir():
            assert (run_copy / stage / file.name).exists()
    assert (run_copy / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    lines = len(events(run_copy))
    run(other, run_copy, resume=False)
    assert entered(run_copy, lines) == []
    assert len(json.loads((run_copy / "results.json").read_text())["rows"]) == 8
    assert {path.name for path in run_copy.iterdir()} == {path.name for path in finished.iterdir()}


def test_a_finished_run_with_other_settings_stays_unless_it_is_to_be_overwritten(
    finished: Path, run_copy: Path
) -> None:
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    other = recipe("evaluate.iso_level=false")
    with pytest.raises(OutputError, match="other settings; --overwrite") as raised:
        run_recipe(other, run_copy, resume=True)
    assert [item.where for item in raised.value.faults] == ["evaluate.iso_level"]
    assert before == {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert free_folder(run_copy, other).name == f"{run_copy.name}-2"
    assert free_folder(run_copy, recipe()) == run_copy


@pytest.mark.long
def test_a_recipe_tried_in_between_leaves_nothing_behind(
    finished: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion_run.tables, "markdown_page", refuse)
        with pytest.raises(DataError):
            run(recipe("evaluate.iso_level=false"), run_copy, resume=False)
    assert (run_copy / "evaluate.new").is_dir()
    assert "every step" in printed(run_copy)  # the earlier run's table, whole
    lines = len(events(run_copy))
    run(recipe("evaluate.thresholds=[3]"), run_copy, resume=False)
    assert entered(run_copy, lines) == ["evaluate", "inspect", "report"]
    assert {path.name for path in run_copy.iterdir()} == {path.name for path in finished.iterdir()}


def test_without_resume_an_unfinished_stage_starts_again(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_copy / "report.partial").mkdir()
    (run_copy / "report.partial" / "stray").write_text("left by a kill")
    run(recipe("name=other"), run_copy, resume=False)
    assert not (run_copy / "report" / "stray").exists()


def test_an_unfinished_stage_of_another_recipe_is_not_resumed(run_copy: Path) -> None:
    partial = run_copy / "report.partial"
    partial.mkdir()
    (partial / "inputs.json").write_text('{"fingerprint": "of another recipe"}')
    (partial / "stray").write_text("left by a kill")
    run(recipe("name=other"), run_copy, resume=True)
    assert not (run_copy / "report" / "stray").exists()


def test_an_unfinished_training_of_another_recipe_is_not_thrown_away(run_copy: Path) -> None:
    checkpoint = run_copy / "train.partial" / "checkpoint" / "000000010"
    checkpoint.mkdir(parents=True)
    (checkpoint.parents[1] / "inputs.json").write_text('{"fingerprint": "of another recipe"}')
    (run_copy / "results.json").unlink()  # so that nothing stands finished
    with pytest.raises(OutputError, match=r"train\.partial holds an unfinished training"):
        run_recipe(recipe("train.lr=0.02"), run_copy, resume=True)
    assert checkpoint.is_dir()
    run_recipe(recipe("train.lr=0.02"), run_copy, resume=True, overwrite=True)
    assert not checkpoint.exists()


def refuse(*_: Any, **__: Any) -> None:
    raise DataError("an image is unreadable")


@pytest.mark.parametrize(
    ("broken", "override", "left"),
    [
        ("subject", "evaluate.thresholds=[3]", {"evaluate.partial"}),
        ("convert_as", "convert.signed=true", {"convert.partial"}),
        ("subject", "convert.signed=true", {"convert.new", "evaluate.partial"}),
        ("quantize", "seed=3", {"ann.new", "quantize.partial"}),
    ],
)
def test_a_stage_that_fails_leaves_everything_that_stood_there(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, broken: str, override: str, left: set[str]
) -> None:
    before = files(run_copy, "log.jsonl")
    monkeypatch.setattr(conversion_run, broken, refuse)
    with pytest.raises(DataError):
        run(recipe(override), run_copy, resume=False)
    after = files(run_copy, "log.jsonl")
    assert {name: after.get(name) for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == left


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model.checkpoint=nowhere.th", RecipeError, "model.checkpoint  nowhere.th is not here"),
        ("quantize.checkpoint=nowhere", RecipeError, "quantize.checkpoint  nowhere is not here"),
        ("model.architecture=digits_cn", RecipeError, "did you mean digits_cnn"),
    ],
)
def test_what_is_not_here_is_told_before_anything_is_written(
    run_copy: Path, override: str, error: type[Exception], words: str
) -> None:
    before = files(run_copy)
    with pytest.raises(error) as caught:
        run(recipe(override), run_copy, resume=False)
    assert words in str(caught.value)
    assert files(run_copy) == before


def test_a_network_quantized_otherwise_is_told_before_anything_is_written(
    finished: Path, run_copy: Path
) -> None:
    before = files(run_copy)
    other = recipe(
        f"quantize.checkpoint={finished / 'train'}",
        "quantize.weight_bits=2",
        "quantize.act_bits=2",
    )
    with pytest.raises(CheckpointError) as caught:
        run(other, run_copy, resume=False)
    assert {fault.where for fault in caught.value.faults} == {"weight_bits", "act_bits"}
    assert files(run_copy) == before


@pytest.mark.parametrize("name", ["", "ann", "evaluate.partial"])
def test_a_file_in_the_way_is_told_and_left_alone(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    way = out / name if name else out
    way.parent.mkdir(exist_ok=True)
    way.write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        run(recipe(), out, resume=False)
    assert way.read_text() == "mine"


# ------------------------------------------------------------------------------------ real kills


LONG = [*SMALL, "data.dataset=digits", "data.limit=320", "data.test_images=64"] + [
    f"{block}.{key}"
    for block in ("ann", "train")
    for key in ("epochs=5", "batch_size=16", "save_every=2")
]


def start(out: Path) -> subprocess.Popen[bytes]:
    """The real command, resuming what is there."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    words = ["run", "digits", "--smoke", "--resume", "--out", str(out), *LONG]
    return subprocess.Popen(
        [sys.executable, "-m", "mt_convert.cli", *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_in(stage: str, out: Path) -> None:
    """SIGKILL the command after some checkpoints of a stage's training, before its end."""
    process = start(out)
    checkpoints = out / f"{stage}.partial" / "checkpoint"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        steps = [int(path.name) for path in checkpoints.glob("[0-9]*")]
        if steps and max(steps) > 20:  # past the first of five epochs of 15 steps
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert (out / f"{stage}.partial").is_dir()
    assert not (out / stage).exists()
    assert not (out / f"{stage}.partial" / "finished.json").exists()


@pytest.mark.long
def test_the_command_killed_in_both_trainings_and_resumed_gives_the_same_numbers(
    tmp_path: Path,
) -> None:
    out = tmp_path / "killed"
    kill_in("ann", out)
    kill_in("train", out)
    assert start(out).wait(300) == 0
    assert [event for stage, event in events(out) if stage == "ann"] == [
        *("started", "started", "finished", "kept")
    ]
    whole = run(load_recipe("digits", LONG, smoke=True), tmp_path / "whole", resume=False)
    assert_equal_runs(whole, out)
