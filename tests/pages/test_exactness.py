"""The stored study of exactness: nothing differs, and the page says what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
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
    stored = read_json(FOLDER / "results.json")
    rows = [regenerate.Row(**row) for row in stored["rows"]]
    assert {row.part for row in rows} <= set(regenerate.PARTS)
    assert (FOLDER / "README.md").read_text() == regenerate.page(rows, stored["not_whole"])


def test_what_was_stopped_goes_on_where_it_was(regenerate: ModuleType, tmp_path: Path) -> None:
    row = regenerate.Row("layers", "linear", "T = 1", "torch", 1, 1, 1, 9, 0)
    other, asked = replace(row, backend="native avx2"), []

    def interrupt(done: Any) -> Iterator[list[Any]]:
        yield [row]
        raise KeyboardInterrupt

    def finish(done: Any) -> Iterator[list[Any]]:
        asked.append(set(done))
        yield [other]

    path = tmp_path / "layers.json"
    with pytest.raises(KeyboardInterrupt):
        regenerate.Stored(path).make(interrupt, "layers")
    assert not regenerate.Stored(path).whole
    regenerate.Stored(path).make(finish, "layers")
    assert asked == [{row.of}]
    assert regenerate.Stored(path).rows == [row, other]
    regenerate.Stored(path).make(interrupt, "layers")  # nothing is missing
