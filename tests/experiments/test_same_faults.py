"""`check` and `run` name the same faults in the same words, each once, and none of them twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mt_convert.errors import Fault, MTConvertError
from mt_convert.experiments import eval_table
from mt_convert.experiments import run as experiment
from mt_convert.experiments.recipes.catalogue import find_recipe
from mt_convert.experiments.recipes.from_scratch import load

LACKING = {
    "files": ("digits", "data.root=/no", "model.checkpoint=/no/x", "model.architecture=nope"),
    "folders": ("digits", "data.root=/no", "model.from_run=/none"),
    "both starts": ("digits", "model.from_run={tmp}"),
    "a start that is no network": ("digits", "quantize.checkpoint={tmp}"),
    "code": ("digits", "model.import={tmp}/none.py"),
    "code of one's own": ("digits", "model.architecture={tmp}/none.py:Net"),
    "a training from scratch": ("digits_plif", "data.root=/no", "model.checkpoint=/no/x"),
}


def said(call: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(MTConvertError) as raised:
        call()
    return type(raised.value), str(raised.value)


@pytest.mark.parametrize("name", list(LACKING))
def test_check_and_run_say_the_same(name: str, tmp_path: Path) -> None:
    recipe, *overrides = (word.format(tmp=tmp_path) for word in LACKING[name])
    loaded = load(recipe, overrides)
    checked = said(lambda: experiment.check(loaded))
    assert checked == said(lambda: experiment.run(loaded, tmp_path / "out", resume=False))
    missing = [word.partition("=")[0] for word in overrides if "=/no" in word]
    assert all(key in checked[1] for key in missing)
    lines = checked[1].splitlines()
    assert len(lines) == len(set(lines))
    assert not (tmp_path / "out").exists()


def test_what_nothing_lacks_passes() -> None:
    for name in ("digits", "digits_plif"):
        experiment.check(load(name))


def test_a_wrong_calibration_of_eval_is_told_once() -> None:
    with pytest.raises(MTConvertError) as raised:
        eval_table.EvalOptions(("digits",), calibrations=("none", "nope+mse(x=1)"))
    first, second = raised.value.faults
    assert (first.where, first.what) == ("--calibrate", "nope is no calibration")
    assert (second.where, second.what) == ("--calibrate", "mse(x=1) x=1")
    assert str(raised.value).count("nope") == 1
    assert str(raised.value).startswith("2 faults in what is to be compared")


def test_a_wrong_recipe_is_told_in_two_short_lines() -> None:
    with pytest.raises(MTConvertError) as raised:
        find_recipe("digts")
    assert raised.value.faults == (
        Fault("digts", "is neither a file nor a shipped recipe", raised.value.faults[0].hint),
    )
    assert "did you mean digits or " in str(raised.value)
    assert max(map(len, str(raised.value).splitlines())) < 140
