"""What the studies share: a chain of recipes, each from the run before."""

from __future__ import annotations

from pathlib import Path

import pytest

from mt_convert.experiments import study
from mt_convert.experiments.recipes.conversion import load_recipe


def test_a_chain_runs_what_is_not_finished_each_from_the_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(study, "run_command", lambda *words: called.append(words))
    first, second, third = study.CHAIN
    study.run_chain(tmp_path, second, "data.root=here")
    assert [words[1] for words in called] == [first, second]
    assert not any("from_run" in word for word in called[0])
    assert f"model.from_run={tmp_path / first}" in called[1]
    assert called[1][-3:] == ("--out", str(tmp_path / second), "--resume")
    (tmp_path / first).mkdir()
    (tmp_path / first / "results.json").write_text("{}")
    called.clear()
    study.run_chain(tmp_path, third)
    assert [words[1] for words in called] == [second, third]


def test_the_recipes_of_the_chain_name_the_runs_that_the_command_makes() -> None:
    before = None
    for name in study.CHAIN:
        assert load_recipe(name).model.from_run == before
        assert load_recipe(name, smoke=True).model.from_run is None
        before = f"runs/{name}"
