"""The stored study of exactness: nothing differs, and the page says what is stored."""

from __future__ import annotations

from types import ModuleType

from paths import ROOT

from mt_convert.integer_engine.exactness import LAYERS
from mt_convert.system.storage import read_json

FOLDER = ROOT / "eval" / "exactness"


def test_no_number_differs_and_a_million_stand_next_to_thresholds(regenerate: ModuleType) -> None:
    stored = read_json(FOLDER / "results.json")
    assert stored["schema"] == regenerate.SCHEMA
    rows = [regenerate.Row(**row) for row in stored["rows"]]
    assert all(row.different == 0 < row.compared for row in rows)
    layers = [row for row in rows if row.part == "layers"]
    assert {row.name for row in layers} == set(LAYERS)
    assert all(row.compared >= regenerate.MILLION for row in layers)


def test_the_page_is_made_from_the_stored_rows(regenerate: ModuleType) -> None:
    rows = [regenerate.Row(**row) for row in read_json(FOLDER / "results.json")["rows"]]
    parts = {row.part for row in rows}
    missing = [title.lower() for part, title in regenerate.PARTS.items() if part not in parts]
    assert (FOLDER / "README.md").read_text() == regenerate.page(rows, missing)
