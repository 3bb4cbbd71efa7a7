"""The stored study of systems: the page says what is stored, and every arm can be read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from mt_convert.experiments.recipes.conversion import dump
from mt_convert.experiments.recipes.from_scratch import load
from mt_convert.system.storage import read_json

FOLDER = ROOT / "eval" / "systems"


def test_the_page_is_made_from_the_stored_cells(regenerate: ModuleType) -> None:
    assert read_json(FOLDER / "results.json")["schema"] == regenerate.SCHEMA
    head = (FOLDER / "head.md").read_text()
    assert (FOLDER / "README.md").read_text() == regenerate.page(head, regenerate.stored_cells())


@pytest.mark.long
def test_arms_of_one_recipe_follow_each_other_in_one_folder(
    regenerate: ModuleType, tmp_path: Path
) -> None:
    system = next(item for item in regenerate.SYSTEMS if item.recipe == "digits_mt_cascade")
    for arm in list(system.arms)[:2]:
        cell = regenerate.measure(system, arm, 0, tmp_path, smoke=True)
        assert (cell.arm, cell.T) == (arm, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["digits_mt_cascade_seed0"]


@pytest.mark.slow
def test_every_arm_is_another_recipe_and_stored_cells_are_of_the_recipes_in_sight(
    regenerate: ModuleType,
) -> None:
    for system in regenerate.SYSTEMS:
        texts = {
            arm: dump(load(system.recipe, regenerate.words(system, arm, 0))) for arm in system.arms
        }
        assert len(set(texts.values())) == len(system.arms) >= 2, system.name
        for cell in regenerate.stored_cells():
            if cell.system == system.name and cell.seed == 0:
                assert cell.recipe == regenerate.identity(system, cell.arm, 0), cell
