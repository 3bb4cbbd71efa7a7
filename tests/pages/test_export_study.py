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
    whole = {name for name, target in TARGETS.items() if not target.real}
    refused = [row.refused for row in by_network["vit_small"] if row.target in whole]
    assert len(refused) == len(whole)
    assert all("attn: no integer form" in str(reason) for reason in refused)


def test_resnet20_and_several_steps_leave_exactly(regenerate: ModuleType) -> None:
    stored = read_json(FOLDER / "results.json")
    rows = {(row["network"], row["target"]): regenerate.Row(**row) for row in stored["rows"]}
    for target in TARGETS:
        row = rows["cifar10_resnet20_w4a4", target]
        assert row.exact if target != "nir" else "fire" in str(row.refused)
    steps = {
        name: [f"{target}, T = 4" for target in ("onnx", "torch")] for name in regenerate.SMALL
    }
    for name, targets in {"cifar10_resnet20_w4a4": steps["silu_cnn"], **steps}.items():
        for target in targets:
            row = rows[f"{name}_n3", target]
            whole = (name, target) != ("vit_small", "onnx, T = 4")
            assert row.exact if whole else "attn: no integer form" in str(row.refused)


def test_the_page_is_made_from_the_stored_rows(regenerate: ModuleType) -> None:
    rows = [regenerate.Row(**row) for row in read_json(FOLDER / "results.json")["rows"]]
    assert (FOLDER / "README.md").read_text() == regenerate.page(rows)
