"""The pages of the first studies hold what their stored rows say."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import groupby
from pathlib import Path

import pytest
from paths import EVAL, ROOT
from studies import command_of

from mt_convert.report.columns import markdown_table
from mt_convert.report.rows import results_from_json


def test_the_tables_of_resnet20_are_made_from_the_stored_rows() -> None:
    folder = EVAL / "cifar10_resnet20"
    rows = results_from_json(json.loads((folder / "results.json").read_text()))
    page = (folder / "README.md").read_text()
    tables = [
        markdown_table(list(group))
        for _, group in groupby(rows, key=lambda row: (row.weight_bits, row.images))
    ]
    assert len(tables) == 4
    assert all(table in page for table in tables)
    lines = {line for table in tables for line in table.splitlines()}
    assert {line for line in page.splitlines() if line.startswith("|")} == lines


def test_the_page_of_batch_norms_is_made_from_the_stored_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = EVAL / "batch_norm"
    script = command_of(folder, monkeypatch)
    content = json.loads((folder / "results.json").read_text())
    assert script.page(content) == (folder / "README.md").read_text()


def test_the_chain_of_widths_is_what_its_rows_say() -> None:
    folder = EVAL / "cifar10_resnet20"
    rows = results_from_json(json.loads((folder / "chain.json").read_text()))
    assert [row.act_bits for row in rows] == [4, 3, 2]
    page = (folder / "head.md").read_text()
    for row in rows:
        assert row.exact_share == 1
        assert row.images == 10_000
        assert row.qann_accuracy == row.snn_accuracy
        figures = (
            f"QANN = SNN {row.snn_accuracy:.2f} % at n = L, T = 1, the fp32 network "
            f"{row.ann_accuracy:.2f} %; {row.spikes_per_neuron:.2f} events per neuron"
        )
        assert figures in page
        recipe = ROOT / "recipes" / f"cifar10_resnet20_w{row.act_bits}a{row.act_bits}.yaml"
        assert f"{row.snn_accuracy:.2f} % at T = 1" in recipe.read_text()


SCRIPTS = sorted(path for path in EVAL.glob("*/*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_script_of_every_study_finds_what_it_imports(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    before = set(sys.modules)
    try:
        runpy.run_path(str(path), run_name="imported")
    finally:
        for name in set(sys.modules) - before:
            if Path(str(getattr(sys.modules[name], "__file__", ""))).parent == path.parent:
                del sys.modules[name]  # siblings of one study have names like those of another
