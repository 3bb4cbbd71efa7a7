"""The stored study of exports: nothing differs, and the page says what is stored."""

from __future__ import annotations

from types import ModuleType

from paths import EVAL

from mt_convert.export.targets import TARGETS
from mt_convert.system.storage import read_json

FOLDER = EVAL / "export"


def test_digits_leave_exactly_to_every_target(regenerate: ModuleType) -> None:
    stored = read_json(FOLDER / "results.json")
    assert stored["schema"] == regenerate.SCHEMA
    rows = [regenerate.Row(**row) for row in stored["rows"]]
    assert {row.target for row in rows if row.network == "digits"} == {*TARGETS, *regenerate.ALSO}
    for row in rows:
        if row.network == "digits" and row.target in TARGETS:
            assert row.exact
            assert row.images >= 1000
            assert row.next_to > 0
        assert (row.exact is True) != (row.refused is not None)


def test_convolutions_leave_with_functions_too_and_attention_is_refused_by_name(
    regenerate: ModuleType,
) -> None:
    stored = read_json(FOLDER / "results.json")
    rows = [regenerate.Row(**row) for row in stored["rows"]]
    by_network = {name: [row for row in rows if row.network == name] for name in regenerate.SMALL}
    assert {row.target for row in by_network["silu_cnn"] if row.exact} == {*TARGETS}
    refused = [row.refused for row in by_network["vit_small"] if row.target in TARGETS]
    assert all("attn: no integer form" in str(reason) for reason in refused)


def test_the_page_is_made_from_the_stored_rows(regenerate: ModuleType) -> None:
    rows = [regenerate.Row(**row) for row in read_json(FOLDER / "results.json")["rows"]]
    assert (FOLDER / "README.md").read_text() == regenerate.page(rows)
