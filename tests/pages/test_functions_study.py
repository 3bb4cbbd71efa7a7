"""The study of functions: what is stored makes the page; the command makes all of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from paths import EVAL

from mt_convert.system.storage import read_json

FOLDER = EVAL / "functions"


@pytest.mark.long
def test_ladders_leave_fewer_analog_operators_and_are_exact(
    regenerate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--smoke", "--runs", str(tmp_path / "runs")]
    regenerate.main(words)
    stored = read_json(tmp_path / "runs" / "results.json")
    rows = [regenerate.Row(**row) for row in stored["rows"]]
    assert [(row.network, row.functions) for row in rows] == [
        (network, functions)
        for network in sorted(regenerate.NETWORKS)
        for functions in ("analog", "ladder")
    ]
    assert all(row.exact for row in rows)
    for kept, ladder in zip(rows[::2], rows[1::2], strict=True):
        assert ladder.analog < kept.analog
        assert ladder.real < kept.real
        assert ladder.ann_accuracy == kept.ann_accuracy
        assert ladder.macs <= kept.macs
    assert (tmp_path / "runs" / "README.md").read_text() == regenerate.page(rows)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(regenerate, "run", never)
    regenerate.main(words)


def test_the_page_is_made_from_the_stored_rows(regenerate: ModuleType) -> None:
    stored = read_json(FOLDER / "results.json")
    assert stored["schema"] == regenerate.SCHEMA
    rows = [regenerate.Row(**row) for row in stored["rows"]]
    assert (FOLDER / "README.md").read_text() == regenerate.page(rows)
    assert {row.network for row in rows} == set(regenerate.NETWORKS)
    assert all(row.exact for row in rows)
