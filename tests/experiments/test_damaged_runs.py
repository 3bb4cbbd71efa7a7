"""A damaged file of a run: one line that names it, whichever command reads it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import call_here
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

FEW = (
    *("evaluate.thresholds=[15]", "evaluate.time_steps=[1]", "evaluate.modes=[parallel]"),
    *("evaluate.iso_level=false", "ann.epochs=1", "train=null"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("finished")
    done = call_here(folder, "run", "digits", "--smoke", "--out", "run", *FEW)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def text(name: str, content: str) -> Callable[[Path], object]:
    """Another text in a file."""
    return lambda run: (run / name).write_text(content)


def piped(name: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return change


def unfinished(stage: str, *more: Callable[[Path], object]) -> Callable[[Path], object]:
    """A stage that was not finished, and what is wrong in it."""

    def change(run: Path) -> None:
        (run / stage).rename(run / f"{stage}.partial")
        for item in more:
            item(run)

    return change


def references(run: Path) -> None:
    shutil.rmtree(run / "evaluate.partial" / "cells")
    for path in (run / "evaluate.partial" / "references").iterdir():
        path.write_text("{}")


def cells(run: Path) -> None:
    for path in (run / "evaluate.partial" / "cells").iterdir():
        path.write_text('{"schema": "x"}')


def other_weights(run: Path) -> None:
    save_file({"x": torch.ones(3)}, run / "ann" / "model.safetensors")


def forged_rows(run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())
    rows["rows"][0]["n"] = "three"
    (run / "results.json").write_text(json.dumps(rows))


SHOW, EVAL = ("show", "run"), ("eval", "run", "--levels", "15", "--time-steps", "1", "--out", "e")
RUN = ("run", "digits", "--smoke", "--resume", "--out", "run", *FEW)
CASES = {
    "report {}": (text("convert/report.json", "{}"), SHOW, "report.json"),
    "report []": (text("convert/report.json", '{"report": []}'), SHOW, "report.json"),
    "deep results": (text("results.json", "[" * 10**5), SHOW, "results.json"),
    "utf-16 results": (
        lambda run: (run / "results.json").write_text("{}", encoding="utf-16"),
        SHOW,
        "results.json",
    ),
    "a pipe": (piped("results.json"), SHOW, "run"),
    "another type": (forged_rows, SHOW, "results.json"),
    "long number": (text("train/config.json", f'{{"schema":{"9" * 5000}}}'), EVAL, "config.json"),
    "other weights": (other_weights, EVAL, "model.safetensors"),
    "no recipe": (text("recipe.yaml", ""), EVAL, "recipe.yaml"),
    "rows of bytes": (
        lambda run: [
            (run / "evaluate/rows.json").write_bytes(b"\xff\xfe"),
            (run / "results.json").unlink(),
        ],
        RUN,
        "rows.json",
    ),
    "answers {}": (unfinished("evaluate", references), RUN, "references"),
    "cells of another schema": (unfinished("evaluate", cells), RUN, "cells"),
    "digits that are no points": (
        unfinished("report", text("evaluate/truncation.json", '[{"curve": "read_out"}]')),
        RUN,
        "truncation.json",
    ),
    "digits of another curve": (
        unfinished(
            "report",
            text(
                "evaluate/truncation.json",
                '[{"curve": "x", "digits": 1, "network_step": 1, "accuracy": 1.0}]',
            ),
        ),
        RUN,
        "truncation.json",
    ),
    "training finished {}": (
        unfinished("ann", text("ann.partial/finished.json", "{}")),
        RUN,
        "finished.json",
    ),
    "training finished as a list": (
        unfinished("ann", text("ann.partial/finished.json", '{"identity": []}')),
        RUN,
        "finished.json",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_named_in_one_error(case: str, finished: Path, tmp_path: Path) -> None:
    change, words, name = CASES[case]
    shutil.copytree(finished, tmp_path / "run")
    change(tmp_path / "run")
    done = call_here(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert name in error.splitlines()[0]
    assert "Traceback" not in done.stderr
